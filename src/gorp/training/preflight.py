"""Checks before training: create what the Trainer will create, so that an error comes before anything expensive.

Created are the optimizer and its schedule, for a parameter of four numbers, and the loggers. The number of steps is
computed here too.
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
from gorp.training.found import SavedTorchSettings
from gorp.training.muon import MUON, MuonAdamW, tables_of


def check_arguments(arguments: TrainingArguments, num_rows: Sequence[int] = ()) -> tuple[type, dict[str, Any]]:
    """Create the optimizer, the schedule and the loggers as training will, and drop them.

    Args:
        arguments: Arguments of a task.
        num_rows: Number of rows of each task that will be trained.

    Returns:
        The optimizer's class, and the options that it is created with besides its parameters.

    Raises:
        ConfigError: If one cannot be created; the message names the key of the `training:` block.
    """
    process = SavedTorchSettings()
    try:
        cls, options = optimizer_of(arguments)
        steps = [num_steps(rows, arguments) for rows in num_rows] or [100]
        for count in steps:
            _create(cls, options, arguments, count)
        try:
            for callback in get_reporting_integration_callbacks(arguments.report_to):
                callback()
        except Exception as error:
            reporters = _as_yaml(arguments.report_to)
            raise ConfigError(f"training.report_to: {reporters} cannot be used: {error}") from error
        return cls, options
    finally:
        process.restore()


def check_method(method: Method, training: Mapping[str, Any], *, num_tasks: int | None) -> None:
    """Check that the run meets what the method declares to need.

    Args:
        method: The method; it is not changed.
        training: The `training:` block as the user wrote it.
        num_tasks: Number of tasks in the whole sequence, or None if it is not known.

    Raises:
        ConfigError: If the number of tasks is missing, or `training.optim` would be ignored.
    """
    if method.needs_num_tasks and num_tasks is None:
        raise ConfigError(
            f"the method `{method.name}` needs the number of tasks of the whole sequence, and it was not given. Pass "
            "num_tasks to train_task, or use a method that does not need it (`gorp methods` lists them)."
        )
    if type(method).make_optimizer is not Method.make_optimizer and "optim" in training:
        raise ConfigError(
            f"training.optim is `{_as_yaml(training['optim'])}`, but the method `{method.name}` uses its own "
            "optimizer, so the option would be ignored. Remove it."
        )


def optimizer_of(arguments: TrainingArguments, model: Any = None) -> tuple[type, dict[str, Any]]:
    """Return the class of the optimizer that `arguments` name, and its options besides the parameters.

    Raises:
        ConfigError: If there is no such optimizer, or it cannot train a method's groups of parameters.
    """
    if arguments.optim == MUON:
        betas = (arguments.adam_beta1, arguments.adam_beta2)
        same = {"lr": arguments.learning_rate, "weight_decay": arguments.weight_decay}
        tables = () if model is None else tables_of(model)
        return MuonAdamW, {**same, "betas": betas, "eps": arguments.adam_epsilon, "tables": tables}
    try:
        cls, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    except Exception as error:
        raise ConfigError(f"training.optim: `{_as_yaml(arguments.optim)}` cannot be used: {error}") from error
    if {"params", "model", "optimizer_dict"} & set(options) or not isinstance(cls, type):
        raise ConfigError(
            f"training.optim: `{_as_yaml(arguments.optim)}` chooses its own parameters and cannot train a method's "
            "groups. Use a plain optimizer such as adamw_torch, sgd or adafactor."
        )
    return cls, {"weight_decay": arguments.weight_decay, **options}


def num_steps(num_rows: int, arguments: TrainingArguments) -> int:
    """Return the number of optimizer steps that the Trainer will take on `num_rows` rows.

    The last batch of an epoch may be smaller; it counts unless `dataloader_drop_last` is set.

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


def _as_yaml(value: Any) -> str:
    """Return a value as the user wrote it in the YAML; Hugging Face converts some to enumerations and lists."""
    return ", ".join(map(_as_yaml, value)) if isinstance(value, list) else str(getattr(value, "value", value))


def _create(cls: type, options: dict[str, Any], arguments: TrainingArguments, steps: int) -> None:
    """Create the optimizer and its schedule.

    Raises:
        ConfigError: If one of them cannot be created with these options.
    """
    try:
        optimizer = cls([nn.Parameter(torch.zeros(2, 2))], **options)
    except Exception as error:
        raise ConfigError(
            f"training.optim: `{_as_yaml(arguments.optim)}` cannot be created with these options: {error}"
        ) from error
    kind, kwargs = SchedulerType(arguments.lr_scheduler_type), cast(Any, arguments.lr_scheduler_kwargs)
    warmup = arguments.get_warmup_steps(steps)
    if kind == SchedulerType.CONSTANT and warmup > 0:
        raise ConfigError(
            "training.warmup_steps: the schedule `constant` has no warmup. Set lr_scheduler_type: constant_with_warmup."
        )
    if kind in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP) and kwargs:
        raise ConfigError(f"training.lr_scheduler_kwargs: the schedule `{kind.value}` takes none. Remove this key.")
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
            f"training.lr_scheduler_type: `{kind.value}` cannot be created with training.lr_scheduler_kwargs {kwargs} "
            f"for {steps} steps: {error}"
        ) from error
