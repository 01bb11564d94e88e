"""What the Trainer makes at the start of training, made once before anything expensive, so that what fails fails now.

The optimizer and the schedule on a parameter of four numbers, the loggers, and the number of steps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_utils import SchedulerType

from gorp.errors import ConfigError
from gorp.methods.base import Method
from gorp.training.found import ProcessAsFound
from gorp.training.muon import MUON, MuonAdamW, tables_of


def check_arguments(arguments: TrainingArguments, num_rows: Sequence[int] = ()) -> tuple[type, dict[str, Any]]:
    """Make what training will make.

    Args:
        arguments: Of a task.
        num_rows: Rows of each task that will be trained.

    Returns:
        The optimizer's class, and what it is made with beside its parameters.

    Raises:
        ConfigError: It names the key of the `training:` block.
    """
    process = ProcessAsFound()
    try:
        cls, options = optimizer_of(arguments)
        steps = [num_steps(rows, arguments) for rows in num_rows] or [100]
        for count in steps:
            _make(cls, options, arguments, count)
        try:
            for callback in get_reporting_integration_callbacks(arguments.report_to):
                callback()
        except Exception as error:
            raise ConfigError(f"training.report_to: {_written(arguments.report_to)} cannot be used: {error}") from error
        return cls, options
    finally:
        process.restore()


def check_method(method: Method, training: Mapping[str, Any], *, num_tasks: int | None) -> None:
    """Refuse a method that would not get what it declares to need.

    Args:
        method: It is not changed.
        training: The `training:` block, as it is written.
        num_tasks: Of the whole sequence; None where it is not known.

    Raises:
        ConfigError: It names the method.
    """
    if method.needs_num_tasks and num_tasks is None:
        raise ConfigError(
            f"the method `{method.name}` plans for the number of tasks of the whole sequence, and nobody said how many "
            "there are. Pass num_tasks to train_task, or use a method that does not need it (`gorp methods`)."
        )
    if type(method).make_optimizer is not Method.make_optimizer and "optim" in training:
        raise ConfigError(
            f"training.optim is `{_written(training['optim'])}`, and the method `{method.name}` brings an optimizer of "
            "its own, so the option would be ignored. Remove it."
        )


def optimizer_of(arguments: TrainingArguments, model: Any = None) -> tuple[type, dict[str, Any]]:
    """The optimizer that `arguments` name: its class, and what it is made with beside its parameters.

    Raises:
        ConfigError: If there is none, or if it cannot train a method's groups of parameters.
    """
    if arguments.optim == MUON:
        betas = (arguments.adam_beta1, arguments.adam_beta2)
        same = {"lr": arguments.learning_rate, "weight_decay": arguments.weight_decay}
        tables = () if model is None else tables_of(model)
        return MuonAdamW, {**same, "betas": betas, "eps": arguments.adam_epsilon, "tables": tables}
    try:
        cls, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    except Exception as error:
        raise ConfigError(f"training.optim: `{_written(arguments.optim)}` cannot be used: {error}") from error
    if {"params", "model", "optimizer_dict"} & set(options) or not isinstance(cls, type):
        raise ConfigError(
            f"training.optim: `{_written(arguments.optim)}` chooses its own parameters and cannot train a method's "
            "groups. Use a plain optimizer such as adamw_torch, sgd or adafactor."
        )
    return cls, {"weight_decay": arguments.weight_decay, **options}


def num_steps(num_rows: int, arguments: TrainingArguments) -> int:
    """Optimizer steps that the Trainer will take on `num_rows` rows.

    The last batch of an epoch may be small, and counts unless `dataloader_drop_last` says otherwise.

    Raises:
        ConfigError: If every batch would be dropped.
    """
    size = arguments.train_batch_size * arguments.world_size
    num_batches = num_rows // size if arguments.dataloader_drop_last else math.ceil(num_rows / size)
    if num_batches == 0:
        raise ConfigError(
            f"training.dataloader_drop_last: a task has {num_rows} rows, fewer than the {size} of one batch, so "
            "every batch would be dropped. Lower training.per_device_train_batch_size, or remove dataloader_drop_last."
        )
    if arguments.max_steps > 0:
        return arguments.max_steps
    return math.ceil(arguments.num_train_epochs * math.ceil(num_batches / arguments.gradient_accumulation_steps))


def _written(value: Any) -> str:
    """A value of the `training:` block as a YAML says it; Hugging Face makes enumerations and lists of them."""
    return ", ".join(map(_written, value)) if isinstance(value, list) else str(getattr(value, "value", value))


def _make(cls: type, options: dict[str, Any], arguments: TrainingArguments, steps: int) -> None:
    """The optimizer and its schedule, and a step of the schedule."""
    try:
        optimizer = cls([nn.Parameter(torch.zeros(2, 2))], **options)
    except Exception as error:
        raise ConfigError(
            f"training.optim: `{_written(arguments.optim)}` cannot be made with these options: {error}"
        ) from error
    kind, kwargs = SchedulerType(arguments.lr_scheduler_type), cast(Any, arguments.lr_scheduler_kwargs)
    warmup = arguments.get_warmup_steps(steps)
    if kind == SchedulerType.CONSTANT and warmup > 0:
        raise ConfigError(
            "training.warmup_steps: the schedule `constant` ignores it. Set lr_scheduler_type: constant_with_warmup."
        )
    if kind in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP) and kwargs:
        raise ConfigError(f"training.lr_scheduler_kwargs: the schedule `{kind.value}` takes none. Remove it.")
    try:
        get_scheduler(
            kind,
            optimizer=optimizer,
            num_warmup_steps=warmup,
            num_training_steps=steps,
            scheduler_specific_kwargs=kwargs,
        )
    except Exception as error:
        raise ConfigError(
            f"training.lr_scheduler_type: `{kind.value}` cannot be made with training.lr_scheduler_kwargs {kwargs} for "
            f"{steps} steps: {error}"
        ) from error
