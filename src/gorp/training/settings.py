"""Turn the `training:` block of a configuration into Hugging Face's TrainingArguments."""

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from gorp.errors import ConfigError, nearest
from gorp.ranges import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, Range
from gorp.training.muon import MUON


DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "constant",
    "logging_steps": 10,
    "save_strategy": "steps",
    "save_steps": 200,
    "save_total_limit": 2,
    "ddp_broadcast_buffers": False,
    "include_num_input_tokens_seen": "all",
    "report_to": "none",
}
"""Defaults that differ from Hugging Face's. A constant learning rate and one epoch are the practice of the field. Two
checkpoints are kept, so that one is left if the other is damaged. Buffers need no broadcast: frames are buffers, and
they are the same on every rank already."""

SET_BY_GORP = (
    "output_dir",
    "seed",
    "data_seed",
    "remove_unused_columns",
    "label_names",
    "length_column_name",
    "do_train",
    "do_eval",
    "do_predict",
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "eval_on_start",
    "eval_accumulation_steps",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "per_device_eval_batch_size",
    "prediction_loss_only",
    "include_for_metrics",
    "batch_eval_metrics",
    "bf16_full_eval",
    "fp16_full_eval",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "resume_from_checkpoint",
    "restore_callback_states_from_checkpoint",
    "save_only_model",
    "save_on_each_node",
    "enable_jit_checkpoint",
    "ignore_data_skip",
    "auto_find_batch_size",
    "optim_target_modules",
    "use_liger_kernel",
    "liger_kernel_config",
    "accelerator_config",
    "parallelism_config",
    "fsdp",
    "fsdp_config",
    "deepspeed",
    "local_rank",
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_private_repo",
    "hub_always_push",
    "hub_revision",
)
"""Keys that a user may not set. gorp sets some itself: paths, seeds, resuming, rows and evaluation. It does not support
the others: sharding, kernels that compute no logits, a batch size that changes within a task, uploads."""

RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Old name of a key -> its name in newer versions of transformers."""


RANGES = {
    "learning_rate": NOT_NEGATIVE,
    "num_train_epochs": Range(0, 1_000_000, open_low=True),
    "per_device_train_batch_size": Range(1, 100_000),
    "gradient_accumulation_steps": Range(1, 100_000),
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": BELOW_ONE,
    "adam_beta2": BELOW_ONE,
    "adam_epsilon": POSITIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "label_smoothing_factor": BELOW_ONE,
    "neftune_noise_alpha": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "logging_steps": POSITIVE,
    "save_steps": POSITIVE,
    "save_total_limit": Range(2),
    "dataloader_num_workers": Range(0, 1000),
    "dataloader_prefetch_factor": Range(1, 100_000),
    "torch_empty_cache_steps": COUNT,
    "ddp_timeout": COUNT,
    "ddp_bucket_cap_mb": COUNT,
}
"""Ranges of numbers that Hugging Face does not check, or checks only after training has begun."""


def check_training_block(block: Mapping[Any, Any]) -> None:
    """Check the keys and the numbers of a `training:` block.

    Raises:
        ConfigError: If TrainingArguments has no such key (the message names the nearest), gorp sets the key itself, or
            a number is outside its range.
    """
    known = {f.name for f in fields(TrainingArguments)}
    for key, value in block.items():
        if not isinstance(key, str):
            raise ConfigError(f"training: the key {key!r} is not text; it must be a field of TrainingArguments.")
        if key.endswith("_token"):  # the message does not repeat the value, which may be a secret
            raise ConfigError(
                f"training.{key}: a secret must not be in the configuration, which is stored with every version. "
                "Remove it; loggers read their secrets from the environment, and gorp uploads nothing."
            )
        if key in SET_BY_GORP:
            raise ConfigError(f"training.{key} is set by gorp itself, or not supported. Remove it.")
        if key not in known:
            raise ConfigError(f"training.{key} is not a field of transformers.TrainingArguments.{nearest(key, known)}")
        _check_numbers(value, f"training.{key}")
        if key in RANGES and isinstance(value, int | float) and (isinstance(value, bool) or value not in RANGES[key]):
            reason = (
                " With only one checkpoint, a damaged file would end the task; null keeps all."
                if key == "save_total_limit"
                else ""
            )
            raise ConfigError(f"training.{key} is {value}; it must be a finite number, {RANGES[key]}.{reason}")
    steps = block.get("max_steps", -1)
    if isinstance(steps, int | float) and (isinstance(steps, bool) or (steps < 1 and steps != -1)):
        raise ConfigError(
            f"training.max_steps is {steps}; it must be at least 1, or -1 to train for num_train_epochs epochs."
        )


def _check_numbers(value: Any, where: str) -> None:
    """Raise if a number in `value`, at any depth, is not finite: the configuration is stored as JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} is {value}; it must be a finite number.")
    if isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_numbers(item, f"{where}.{key}")


def training_arguments(
    block: Mapping[str, Any], *, folder: Path, seed: int, encoder_decoder: bool, widened: bool = False
) -> TrainingArguments:
    """Return the TrainingArguments for one task.

    Args:
        block: The `training:` block, with Hugging Face's names.
        folder: Folder for checkpoints.
        seed: Seed of this task: order of rows, dropout, new adapters.
        encoder_decoder: Whether the Trainer is a Seq2SeqTrainer.
        widened: Whether the method trains bfloat16 weights in float32. The forward pass then runs in bf16 autocast,
            unless the block sets it.

    Raises:
        ConfigError: If a key is not known, Hugging Face refuses a value, the device lacks the precision, or gorp does
            not support the setting.
    """
    check_training_block(block)
    options: dict[str, Any] = DEFAULTS | {"use_cpu": not torch.accelerator.is_available()} | dict(block)
    if widened and not options.get("fp16"):
        options = {"bf16": True} | options
    cuda = torch.cuda.is_available() and not options["use_cpu"]
    if options.get("bf16") and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        why = "training.bf16 is on" if "bf16" in block else "the model is in bfloat16 (so training.bf16 is on)"
        raise ConfigError(f"{why}, but this GPU has no bfloat16. Set fp16: true, or bf16: false for float32.")
    if options.get("fp16") and (options["use_cpu"] or not torch.accelerator.is_available()):
        raise ConfigError("training.fp16 is on, but a CPU trains only in float32 or bf16. Remove it.")
    muon = options.get("optim") == MUON
    if muon and options.get("optim_args"):
        raise ConfigError(f"training.optim_args: `{MUON}` takes none. Remove this key.")
    if muon:  # Hugging Face's TrainingArguments do not know muon; it is set below
        options["optim"] = "adamw_torch"
    known = {f.name for f in fields(TrainingArguments)}
    for old, new in RENAMED.items():  # the old name would print a warning in each task
        if old in options and new in known:
            options[new] = options.pop(old)
    cls = Seq2SeqTrainingArguments if encoder_decoder else TrainingArguments
    try:
        arguments = cls(**options, output_dir=str(folder), seed=seed, data_seed=seed, remove_unused_columns=False)
    except Exception as error:  # any error comes from these values
        raise ConfigError(f"training: Hugging Face refuses these arguments: {error}") from error
    if muon:
        arguments.optim = MUON
    if arguments.save_strategy == SaveStrategy.BEST:
        raise ConfigError("training.save_strategy is `best`, but there is no evaluation within a task. Use `steps`.")
    if arguments.n_gpu > 1:
        raise ConfigError(
            f"{arguments.n_gpu} GPUs are visible, and Hugging Face would train with nn.DataParallel, which copies the "
            "model in each step; gorp's layers cannot be copied like that. Make only one GPU visible "
            "(CUDA_VISIBLE_DEVICES=0)."
        )
    return arguments
