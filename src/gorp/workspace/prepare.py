"""Everything that can be refused is refused here, before the first step of training and before anything is written."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from gorp.data import Task, load_task, rows_fingerprint
from gorp.errors import DataError
from gorp.evaluation import inspect_task
from gorp.methods import METHODS, build_method
from gorp.methods.base import Method
from gorp.models.files import base_digests
from gorp.models.load import architecture_of, load_model, load_tokenizer, locate
from gorp.progress import Progress
from gorp.training import ProcessAsFound, check_arguments, check_method, training_arguments
from gorp.workspace.changes import check_settings
from gorp.workspace.config import RunConfig, num_tasks
from gorp.workspace.learned import recall, train_file_sha256
from gorp.workspace.lengths import check_lengths
from gorp.workspace.store import Version, Workspace


CUT_SEED = 0
"""Decides which rows are cut for dev and eval. It is not the run's seed: scores of two seeds must compare."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a run works with: checked, loaded, the method as it was after the current version."""

    config: RunConfig
    workspace: Workspace
    tasks: list[Task]
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    method: Method
    base: Mapping[str, Any]
    """`path` and `revision` of the base model, and the digests of what it consists of."""
    lineage: list[Version]
    """Of the workspace as it is, from v0 to CURRENT; empty for a new one."""
    train_files: Mapping[str, str | None]
    """SHA-256 of the file that each task's training rows were read from; None for a folder or a hub data set."""

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of the rows that every task is judged by."""
        return {task.name: rows_fingerprint(task.eval) for task in self.tasks}


def prepare(
    config: RunConfig, workspace: Workspace, progress: Progress, *, scored: Collection[str] | None = None
) -> Session:
    """Load the tasks and the model and check all that can be checked. Nothing is written.

    Args:
        config: What to do.
        workspace: Where.
        progress: Told what is read, and what was noticed.
        scored: To score only: the tasks that are wanted. One that is not learned yet and cannot be read is left out,
            unless it is the only one.

    Raises:
        DataError: Wrong rows, labels outside the set, an answer longer than its budget.
        ConfigError: Arguments that Hugging Face refuses; a configuration that the workspace was not made with; a method
            that can learn nothing more.
        ModelError: A model that cannot be used, or a target pattern that matches none of its layers.
        CheckpointError: A damaged version, or one of another base model.
    """
    lineage = workspace.lineage() if workspace.exists() else []
    if lineage:
        check_settings(config, lineage[-1])
    progress.say(f"reading {len(config.tasks)} task{'s' * (len(config.tasks) > 1)}")
    folder = locate(config.model)
    local = replace(config.model, path=str(folder))
    architecture = architecture_of(local)
    tokenizer = load_tokenizer(local)
    train_files: dict[str, str | None] = {}
    tasks = _tasks(config, workspace, lineage, tokenizer, progress, scored, train_files)
    for task in tasks:
        for note in task.notes:
            progress.say(f"{task.name}: {note}")
    encoder_decoder = bool(architecture.is_encoder_decoder)
    method = build_method(config.method, config.options, config.lora)
    check_method(method, config.training, num_tasks=num_tasks(config))
    optimizer, options = check_training(config, workspace, architecture, tasks)
    for task in tasks:
        asked: Any = {"encoder_decoder": encoder_decoder, "encoding": config.encoding, "config": config.eval}
        try:
            for note in inspect_task(task, tokenizer, **asked):
                progress.say(f"{task.name}: {note}")
        except DataError as error:
            raise DataError(f"task {task.name}, {error}") from error
    progress.say(f"loading {config.model.path}")
    digests = base_digests(folder, trust_remote_code=config.model.trust_remote_code)
    base = {"path": config.model.path, "revision": config.model.revision, **digests}
    sha256 = base["sha256"]
    for version in lineage:
        version.verify(sha256)
        version.check_base(base)
    model, _ = load_model(local, device_for(config))
    for note in check_lengths(tasks, tokenizer, model, encoding=config.encoding, evaluation=config.eval):
        progress.say(note)
    method.setup(model)
    method.check_optimizer(optimizer, options)
    state = lineage[-1].method_state(sha256) if lineage else {}
    if state:
        method.load_state_dict(state)
    if scored is None and lineage and len(lineage[-1].contains) < len(tasks):
        method.warnings(len(lineage[-1].contains))  # refuses a method that can learn nothing more
    return Session(
        config=config,
        workspace=workspace,
        tasks=tasks,
        tokenizer=tokenizer,
        model=model,
        method=method,
        base=base,
        lineage=lineage,
        train_files=train_files,
    )


def _tasks(
    config: RunConfig,
    workspace: Workspace,
    lineage: list[Version],
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress,
    scored: Collection[str] | None,
    train_files: dict[str, str | None],
) -> list[Task]:
    """Every task: whole where it is to be trained, and what it is judged by where it is learned.

    `train_files` gets the digest of each file of training rows, taken before it is read.
    """
    learned = lineage[-1].contains if lineage else []
    together = METHODS[config.method].joint and len(learned) < len(config.tasks) and scored is None
    asked: Any = {"tokenizer": tokenizer, "seed": CUT_SEED, "date": config.encoding.date}
    tasks = []
    for spec in config.tasks:
        if scored is not None and spec.name not in scored:
            continue
        if spec.name in learned and not together:
            task = recall(spec, workspace, lineage[-1], **asked, progress=progress)
        else:
            try:
                train_files[spec.name] = train_file_sha256(spec)
                task = load_task(spec, **asked)
            except DataError as error:
                if scored is not None and len(scored) > 1:
                    progress.say(f"{spec.name}: not learned yet, and not scored: {error}")
                    continue
                if spec.name not in learned:
                    raise
                raise DataError(
                    f"{error} The method `{config.method}` trains on the rows of all tasks together, so those of "
                    "learned tasks must still be there."
                ) from error
        tasks.append(task)
    return tasks


def device_for(config: RunConfig) -> str:
    """The GPU where there is one, unless `training.use_cpu` says no."""
    return "cuda" if torch.cuda.is_available() and not config.training.get("use_cpu") else "cpu"


def check_training(
    config: RunConfig, workspace: Workspace, architecture: PreTrainedConfig, tasks: Sequence[Task]
) -> tuple[type, dict[str, Any]]:
    """Make the arguments of training once, and what the Trainer makes from them for the rows of each task.

    Returns:
        The optimizer's class, and what it is made with.

    Raises:
        ConfigError: If Hugging Face refuses them, or something that they name is not there or cannot be made.
    """
    dtype = architecture.dtype if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    process = ProcessAsFound()
    try:
        arguments = training_arguments(
            config.training,
            folder=workspace.root / "run",
            seed=config.seed,
            encoder_decoder=bool(architecture.is_encoder_decoder),
            widened=METHODS[config.method].widens and dtype == torch.bfloat16,
        )
        counts = [len(task.train) for task in tasks if task.train is not None]
        joint = METHODS[config.method].joint and len(counts) == len(tasks)
        return check_arguments(arguments, [sum(counts)] if joint else counts)
    finally:
        process.restore()
