"""What Protection refuses, before the first step: trainings in which a method's steps would not be what it says."""

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn
from torch.optim import Optimizer
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from gorp.errors import ConfigError, TrainingError
from gorp.methods.base import Method
from gorp.training.preflight import optimizer_of


INSTEAD = "or train with gorp's own loop (`gorp train`), which supports every method"


def check_method(method: type[Method]) -> None:
    """Raise if a method needs more of a training loop than hooks around its optimizer step.

    Raises:
        ConfigError: The message names the method and what it needs.
    """
    needs = {
        "the rows of all tasks in one training": method.joint,
        "a term in the loss that depends on the batch": method.extra_loss is not Method.extra_loss
        and method.loss_reads_batch,
        "its own optimizer": method.make_optimizer is not Method.make_optimizer,
        "the number of tasks": method.needs_num_tasks,
    }
    for need, is_so in needs.items():
        if is_so:
            raise ConfigError(
                f"the method `{method.name}` needs {need}, which it cannot have in a Trainer that is not gorp's. Use "
                f'method="gorp", {INSTEAD}.'
            )


def check_arguments(args: TrainingArguments, method: Method, model: nn.Module) -> None:
    """Raise if a training with these arguments cannot be protected.

    Raises:
        ConfigError: The message names the argument and what to do.
    """
    kind = AcceleratorState().distributed_type if AcceleratorState._shared_state else DistributedType.NO
    sharded = {DistributedType.DEEPSPEED: "DeepSpeed", DistributedType.FSDP: "FSDP"}
    if args.deepspeed or args.fsdp or kind in sharded:
        name = sharded.get(kind, "DeepSpeed" if args.deepspeed else "FSDP")
        raise ConfigError(
            f"{name} gives the optimizer flattened or sharded matrices, and gorp projects whole ones. Use plain data "
            "parallelism: `torchrun` or `accelerate launch` without it."
        )
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs are visible, and Hugging Face would train with nn.DataParallel, which copies the model "
            "in each step; gorp's layers cannot be copied like that. Start with `torchrun` or `accelerate launch`, or "
            "make one GPU visible (CUDA_VISIBLE_DEVICES=0)."
        )
    refused = {
        "load_best_model_at_end": "a checkpoint's weights alone are not the state of the method at that step, so the "
        "task would end with weights of one step and projections of another. Set it to False; use max_steps or "
        "EarlyStoppingCallback to stop early",
        "auto_find_batch_size": "it begins the training again inside one call, with another number of steps. Set "
        "per_device_train_batch_size",
        "restore_callback_states_from_checkpoint": "it replaces this Protection by a new object. Set it to False",
    }
    for name, why in refused.items():
        if getattr(args, name, False):
            raise ConfigError(f"{name} is on: {why}.")
    if args.save_strategy == SaveStrategy.BEST:
        raise ConfigError("save_strategy is `best`, with which training cannot be resumed. Use `steps` or `epoch`.")
    if method.widens and getattr(model, "dtype", None) == torch.bfloat16 and not args.bf16:
        raise ConfigError(
            f"the method `{method.name}` trains bfloat16 weights in float32, which needs bf16=True in the training "
            "arguments."
        )
    optimizer_of(args)  # refuses layer-wise optimizers and those that choose their own parameters


def check_optimizer(optimizer: Optimizer, method: Method, model: nn.Module) -> None:
    """Raise if the optimizer that the Trainer made cannot train what the method trains.

    Raises:
        ConfigError: If a trained parameter is not in it, or the method cannot work with it.
    """
    known = {p for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p not in known]
    if missing:
        raise ConfigError(
            f"the optimizer has no `{missing[0]}`{f' and {len(missing) - 1} other' if missing[1:] else ''} parameters "
            "that this task trains: it was made before Protection added them. Do not pass `optimizers=`; name the "
            "optimizer in the training arguments (`optim`), so that the Trainer makes it."
        )
    method.check_optimizer(type(optimizer), optimizer.defaults)


def check_finite(model: nn.Module, step: int) -> None:
    """Raise if a trained parameter is no longer finite.

    Raises:
        TrainingError: The message names the parameter and the step.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise TrainingError(
                f"`{name}` is no longer finite after step {step}. Nothing was saved, and every earlier version is "
                "whole. Try a lower learning rate."
            )
