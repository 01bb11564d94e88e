"""Load everything a run needs and check everything that can fail, before the first training step or write."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from gorp.data import Task, load_task, rows_fingerprint
from gorp.data.split import CUT_SEED
from gorp.errors import DataError
from gorp.evaluation import inspect_task
from gorp.methods import METHODS, build_method
from gorp.methods.base import Method
from gorp.models.files import base_digests
from gorp.models.load import architecture_of, load_model, load_tokenizer, locate
from gorp.progress import Progress
from gorp.rows.lengths import check_lengths
from gorp.training import SavedTorchSettings, check_arguments, check_method, training_arguments
from gorp.workspace.changes import check_settings
from gorp.workspace.config import RunConfig, num_tasks
from gorp.workspace.guard_text import GuardText, guard_note, read_guard
from gorp.workspace.held import held_once, held_versions, order_of_learning
from gorp.workspace.learned import recall, train_file_sha256
from gorp.workspace.store import Version, Workspace


@dataclass(frozen=True, kw_only=True)
class Session:
    """Everything a run works with, loaded and checked; the method has the state of the current version."""

    config: RunConfig
    workspace: Workspace
    tasks: list[Task]
    """In the order of learning: the learned ones, then the others in the order of the YAML."""
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    method: Method
    base: Mapping[str, Any]
    """`path` and `revision` of the base model, and the digests of its parts."""
    lineage: list[Version]
    """The versions from v0 to CURRENT; empty for a new workspace."""
    train_files: Mapping[str, str | None]
    """Task -> SHA-256 of its training file; None for a folder or a hub data set."""
    guard: GuardText | None
    """The guard text, on which versions are scored too; None if there is none, or it is not wanted."""
    held: Mapping[str, Version]
    """Task that is not trained again -> the version that the gate holds, trained on the same rows."""

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Task -> fingerprint of its eval rows."""
        return {task.name: rows_fingerprint(task.eval) for task in self.tasks}


def prepare(
    config: RunConfig,
    workspace: Workspace,
    progress: Progress,
    *,
    scored: Collection[str] | None = None,
    guarded: bool = True,
) -> Session:
    """Load the tasks and the model, and check everything that can be checked. Nothing is written.

    Args:
        config: The configuration.
        workspace: The workspace; it need not exist.
        progress: Receives a line for what is read and for every note on the data.
        scored: Only for scoring: the tasks to score. A task that is not learned yet and cannot be read is left out,
            unless it is the only one. None for training.
        guarded: Whether to read the guard text.

    Raises:
        DataError: For invalid rows, labels outside the set, an answer longer than its budget, or a guard text that
            cannot be read.
        ConfigError: For arguments that Hugging Face refuses, settings that differ from those of the workspace, or a
            method that cannot learn another task.
        ModelError: For a model that cannot be used, or a target pattern that matches none of its layers.
        CheckpointError: For a damaged version, or one of another base model.
    """
    lineage = workspace.lineage() if workspace.exists() else []
    if lineage:
        check_settings(config, lineage[-1], held_once(workspace))
    progress.say(f"reading {len(config.tasks)} task{'s' * (len(config.tasks) > 1)}")
    folder = locate(config.model)
    local = replace(config.model, path=str(folder))
    architecture = architecture_of(local)
    tokenizer = load_tokenizer(local)
    train_files: dict[str, str | None] = {}
    tasks = _tasks(config, workspace, lineage, tokenizer, progress, scored, train_files)
    held = _held(tasks, workspace, lineage) if scored is None else {}
    for task in tasks:
        for note in task.notes:
            progress.say(f"{task.name}: {note}")
    encoder_decoder = bool(architecture.is_encoder_decoder)
    method = build_method(config.method, config.options, config.lora)
    check_method(method, config.training, num_tasks=num_tasks(config))
    optimizer, options = check_training(config, workspace, architecture, tasks)
    guard = read_guard(config, tokenizer, encoder_decoder=encoder_decoder) if guarded else None
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
    if guard is not None:
        progress.say(guard_note(guard, model, tokenizer))
    for note in check_lengths(tasks, tokenizer, model, encoding=config.encoding, evaluation=config.eval):
        progress.say(note)
    method.setup(model)
    method.check_optimizer(optimizer, options)
    state = lineage[-1].method_state(sha256) if lineage else {}
    if state:
        method.load_state_dict(state)
    if scored is None and lineage and len(lineage[-1].contains) + len(held) < len(tasks):
        method.warnings(len(lineage[-1].contains))  # raises if the method cannot learn another task
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
        guard=guard,
        held=held,
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
    """Load every task: with its training rows if it is to be trained, with its eval rows alone if it is learned.

    `train_files` receives the digest of each training file, taken before the file is read.
    """
    learned = lineage[-1].contains if lineage else []
    together = METHODS[config.method].joint and len(learned) < len(config.tasks) and scored is None
    asked: Any = {"tokenizer": tokenizer, "seed": CUT_SEED, "date": config.encoding.date}
    tasks = []
    specs = {spec.name: spec for spec in config.tasks}
    for spec in map(specs.__getitem__, order_of_learning(list(specs), learned)):
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
                    progress.say(f"{spec.name}: not learned yet, and not scored, because it cannot be read: {error}")
                    continue
                if spec.name not in learned:
                    raise
                raise DataError(
                    f"{error} The method `{config.method}` trains on the rows of all tasks together, so the training "
                    "rows of learned tasks must still exist."
                ) from error
        tasks.append(task)
    return tasks


def _held(tasks: Sequence[Task], workspace: Workspace, lineage: Sequence[Version]) -> dict[str, Version]:
    """Return the tasks whose rows are still those of a version that the gate holds, each with the newest such one."""
    versions, found = held_versions(workspace, lineage) if lineage else {}, {}
    for task in tasks:
        if task.train is not None and task.name in versions:
            rows = rows_fingerprint(task.train)
            for version in versions[task.name]:
                if version.record["tasks"][task.name].get("train_fingerprint") == rows:
                    found[task.name] = version
    return found


def device_for(config: RunConfig) -> str:
    """Return "cuda" if there is a GPU and `training.use_cpu` is not set, else "cpu"."""
    return "cuda" if torch.cuda.is_available() and not config.training.get("use_cpu") else "cpu"


def check_training(
    config: RunConfig, workspace: Workspace, architecture: PreTrainedConfig, tasks: Sequence[Task]
) -> tuple[type, dict[str, Any]]:
    """Build the training arguments, and from them the optimizer and scheduler for every task, to find errors now.

    Returns:
        The optimizer's class and its arguments.

    Raises:
        ConfigError: If Hugging Face refuses the arguments, or if something they name cannot be built.
    """
    dtype = architecture.dtype if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    process = SavedTorchSettings()
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
