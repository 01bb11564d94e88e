"""Train one task of a sequence: prepare the model, train with a new Trainer, end the task."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from gorp.core.outputs import Batch
from gorp.data import Collator, Encoding, encode
from gorp.layers.inputs import LOOKED_AT, rows_at_once
from gorp.layers.targets import Treatment, treatments, untouched_line, weight_of
from gorp.methods.base import Method, TaskContext
from gorp.training.checkpoint import last_whole, seconds_until
from gorp.training.failures import explained
from gorp.training.found import SavedModelState, SavedTorchSettings
from gorp.training.interrupt import SaveOnInterrupt
from gorp.training.preflight import check_arguments, check_method, num_steps
from gorp.training.settings import training_arguments
from gorp.training.trainer import ContinualSeq2SeqTrainer, ContinualTrainer


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Cost and outcome of training one task."""

    task: str
    steps: int
    seconds: float
    """Wall-clock time of training and of the task's end. If the task was resumed: the sum over all parts, of an earlier
    part the time until its last checkpoint. What came after that is lost work and does not count."""
    boundary_seconds: float
    """The part of `seconds` spent in `end_task`: adding to the deltas, extending S, a Fisher pass."""
    tokens: int
    """Number of input tokens trained on, padding included."""
    resumed_at: int
    """Optimizer step from which training resumed; 0 for a new start."""
    facts: Mapping[str, Any]
    """What the method's `facts` returned: leak, capacity, bytes kept."""


def train_task(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    rows: Dataset,
    *,
    name: str,
    index: int,
    seed: int,
    training: Mapping[str, Any],
    encoding: Encoding,
    folder: Path,
    num_tasks: int | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    on_ready: Callable[[list[Treatment]], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> TaskResult:
    """Train `method` on one task; resume from the last complete checkpoint in `folder` if there is one.

    Afterwards the model has its original layers again, with the changes of all tasks in its weights, and the method
    holds the task's delta.

    Args:
        model: The base model, on its device, after `method.setup(model)`.
        tokenizer: The model's tokenizer.
        method: The method as the previous task left it.
        rows: Rows with the columns `prompt` and `completion`.
        name: Name of the task, for messages.
        index: Number of the task in the sequence, from 1.
        seed: Seed of the whole sequence; each task derives its own from it.
        training: The `training:` block.
        encoding: How long prompts and answers may be.
        folder: Folder for checkpoints.
        num_tasks: Number of tasks in the whole sequence, if it is known.
        callbacks: Callbacks for the Trainer, such as progress bars.
        on_ready: Called before the first step with how each weight is trained.
        say: Called with lines of text: warnings of the method, the step at which training starts, an interruption.

    Raises:
        ConfigError: If no weight can change any more, or a requirement of the method is not met
            (`gorp.training.preflight`).
        KeyboardInterrupt: On SIGINT, after the running step is saved in `folder`; on SIGTERM its subclass `Terminated`;
            see `gorp.training.interrupt`.
        CheckpointError: If `folder` holds checkpoints and all of them are damaged.

    After any error or interruption the model and the method are as they were before the call, so the same objects can
    be used again. The exception is an error in `end_task`: the method then refuses to train until a state is loaded.

    Example:
        >>> from pathlib import Path
        >>> from gorp import METHODS, Encoding, ModelConfig, TaskSpec, load_model, load_task, train_task
        >>> model, tokenizer = load_model(ModelConfig(path="gorp-tiny-t5"), "cpu")
        >>> method = METHODS["incremental_lora"]()
        >>> method.setup(model)
        >>> task = load_task(TaskSpec(name="october", train="october.jsonl"))
        >>> training = {"max_steps": 1, "per_device_train_batch_size": 2}
        >>> result = train_task(
        ...     model, tokenizer, method, task.train, name="october", index=1, seed=0,
        ...     training=training, encoding=Encoding(), folder=Path("runs"),
        ... )
        >>> result.steps, result.resumed_at
        (1, 0)
    """
    encoded = encode(rows, tokenizer, encoder_decoder=_is_encoder_decoder(model), encoding=encoding)
    return train_encoded(
        model,
        method,
        encoded,
        Collator(pad_token_id=tokenizer.pad_token_id),  # pyright: ignore[reportArgumentType]
        name=name,
        index=index,
        seed=seed,
        training=training,
        folder=folder,
        num_tasks=num_tasks,
        callbacks=callbacks,
        on_ready=on_ready,
        say=say,
    )


def train_encoded(
    model: nn.Module,
    method: Method,
    encoded: Dataset,
    collator: Callable[[list[Any]], Batch],
    *,
    name: str,
    index: int,
    seed: int,
    training: Mapping[str, Any],
    folder: Path,
    num_tasks: int | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    on_ready: Callable[[list[Treatment]], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> TaskResult:
    """Do what `train_task` does, for rows that are already encoded and any model whose forward pass returns a loss.

    `encoded` holds the encoded rows. `collator` turns a list of them into a batch: the keyword arguments of the model's
    forward pass. All other arguments are those of `train_task`.
    """
    process, found = SavedTorchSettings(), SavedModelState(model)
    try:
        arguments = training_arguments(
            training,
            folder=folder,
            seed=seed * 1000 + index,
            encoder_decoder=_is_encoder_decoder(model),
            widened=method.widens and getattr(model, "dtype", None) == torch.bfloat16,
        )
        check_method(method, training, num_tasks=num_tasks)
        check_arguments(arguments, [len(encoded)])
        context = TaskContext(
            name=name,
            index=index,
            seed=seed,
            num_steps=num_steps(len(encoded), arguments),
            num_tasks=num_tasks,
            batches=lambda size, limit: _batches(encoded, collator, size, limit, arguments.seed, _device(model)),
        )
        checkpoint = last_whole(folder, ranks=arguments.world_size, say=say)
        for line in method.warnings(index - 1):
            say(line)
        try:
            return _train(model, method, encoded, collator, arguments, context, checkpoint, callbacks, on_ready, say)
        except BaseException:
            method.abandon(model)
            found.restore()
            raise
    finally:
        process.restore()


def _train(
    model: Any,
    method: Method,
    encoded: Dataset,
    collator: Callable[[list[Any]], Batch],
    arguments: TrainingArguments,
    context: TaskContext,
    checkpoint: Path | None,
    callbacks: tuple[TrainerCallback, ...],
    on_ready: Callable[[list[Treatment]], None] | None,
    say: Callable[[str], None],
) -> TaskResult:
    name = context.name
    resumed_at = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    set_seed(arguments.seed)
    method.begin_task(model, context)
    method.begin_training(model, context)
    if on_ready is not None:
        on_ready(treatments(model))
    begun = SavedModelState(model)
    trainer_class = ContinualSeq2SeqTrainer if _is_encoder_decoder(model) else ContinualTrainer
    trainer = trainer_class(
        model, arguments, method=method, task_name=name, train_dataset=encoded, data_collator=collator
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    interrupt = SaveOnInterrupt(name, say)
    for callback in (*callbacks, interrupt):
        trainer.add_callback(callback)
    if checkpoint is None:
        say(f"task {name} starts from the beginning: {context.num_steps} steps")
    else:
        say(f"task {name} resumes from step {resumed_at} of {context.num_steps}")
    started = trainer.started = time.perf_counter() - (0.0 if checkpoint is None else seconds_until(checkpoint))
    with interrupt.listening(arguments), explained(name, trainer.state_now):
        output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if checkpoint is not None and resumed_at >= context.num_steps:  # the Trainer restores it only before a step
        trainer.restore_random_state(checkpoint)
    optimizer = trainer.plain_optimizer
    if callable(to_averages := getattr(optimizer, "eval", None)):
        to_averages()  # a schedule-free optimizer trains one set of weights; what it has learned is their average
    trainer.check_weights()
    trained = {weight_of(parameter) for parameter, p in model.named_parameters() if p.requires_grad}
    if line := untouched_line(trainer.untouched(), len(trained)):
        say(f"{name}: {line}")
    begun.restore()
    boundary = time.perf_counter()
    _end_task(method, model, optimizer, context)
    finished = time.perf_counter()
    return TaskResult(
        task=name,
        steps=output.global_step,
        seconds=finished - started,
        boundary_seconds=finished - boundary,
        tokens=int(trainer.state.num_input_tokens_seen),
        resumed_at=resumed_at,
        facts=method.facts(),
    )


def _end_task(method: Method, model: nn.Module, optimizer: Optimizer, context: TaskContext) -> None:
    """Call `method.end_task`, and mark the method as broken if it fails, because its state is then half changed."""
    try:
        method.end_task(model, optimizer, context)
    except BaseException:
        method.broken = f"an error occurred at the end of task `{context.name}`"
        raise


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _batches(
    encoded: Dataset,
    collator: Callable[[list[Any]], Batch],
    size: int,
    limit: int | None,
    seed: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Yield batches of at most `limit` rows, drawn without replacement by `seed`, on the model's device."""
    order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(seed)).tolist()[:limit]
    size = rows_at_once(size, (encoded[i] for i in order[:LOOKED_AT]))
    for start in range(0, len(order), size):
        rows = [encoded[i] for i in order[start : start + size]]
        yield {key: value.to(device) for key, value in collator(rows).items()}
