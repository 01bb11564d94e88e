"""From the `training:` block of a configuration to Hugging Face's TrainingArguments."""

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from gorp.errors import ConfigError, nearest


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
"""Where they differ from Hugging Face's own. Constant learning rate and one epoch: the practice of the field. Two
checkpoints, so that one is whole while the other is written. Frames are buffers, the same on every rank already."""

OURS = (
    "output_dir",
    "seed",
    "data_seed",
    "remove_unused_columns",
    "load_best_model_at_end",
    "do_train",
    "resume_from_checkpoint",
    "save_only_model",
    "ignore_data_skip",
    "eval_strategy",
    "fsdp",
    "deepspeed",
)
"""Set by gorp: paths by the workspace, seeds by `seed`, resume and evaluation by itself; sharding is not supported."""

RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Names that newer versions of transformers have replaced."""


LEAST = {"learning_rate": 0, "num_train_epochs": 0, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
"""Numbers that Hugging Face takes as they are, and fails on when training has begun."""


def check_training_block(block: Mapping[str, Any]) -> None:
    """Refuse keys that TrainingArguments does not have, or that gorp sets itself, and numbers that cannot be.

    Raises:
        ConfigError: With the nearest right key, or what the number may be.
    """
    known = {f.name for f in fields(TrainingArguments)}
    for key in block:
        if key in OURS:
            raise ConfigError(f"training.{key} is set by gorp itself, or not supported. Remove it.")
        if key not in known:
            raise ConfigError(f"training.{key} is not a field of transformers.TrainingArguments.{nearest(key, known)}")
    for key, least in LEAST.items():
        value = block.get(key)
        if isinstance(value, int | float) and not least <= value < math.inf:
            raise ConfigError(f"training.{key} is {value}; wanted a finite number, at least {least}.")
    if block.get("save_total_limit") == 1:
        raise ConfigError(
            "training.save_total_limit is 1: the old checkpoint would be deleted before the new one is whole. Use 2."
        )


def training_arguments(
    block: Mapping[str, Any], *, folder: Path, seed: int, encoder_decoder: bool
) -> TrainingArguments:
    """TrainingArguments for one task.

    Args:
        block: The `training:` block; Hugging Face's names.
        folder: Where checkpoints go.
        seed: Of this task: data order, dropout, fresh adapters.
        encoder_decoder: Whether the Trainer is a Seq2SeqTrainer.

    Raises:
        ConfigError: For unknown keys and values that Hugging Face refuses, bf16 on a device without it among them.
    """
    check_training_block(block)
    options: dict[str, Any] = DEFAULTS | {"use_cpu": not torch.accelerator.is_available()} | dict(block)
    cuda = torch.cuda.is_available() and not options["use_cpu"]
    if options.get("bf16") and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError("training.bf16 is on, but this GPU has no bfloat16. Use fp16, or float32 (bf16: false).")
    known = {f.name for f in fields(TrainingArguments)}
    for old, new in RENAMED.items():  # the old name warns in each task
        if old in options and new in known:
            options[new] = options.pop(old)
    cls = Seq2SeqTrainingArguments if encoder_decoder else TrainingArguments
    try:
        return cls(**options, output_dir=str(folder), seed=seed, data_seed=seed, remove_unused_columns=False)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: Hugging Face refuses these arguments: {error}") from error
