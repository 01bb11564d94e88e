"""Train the pending tasks one after another and score every task after each; a killed run can be continued.

For each task these are written, in this order: checkpoints in run/<task>; the tensors and training.json of the finished
training in versions/.tmp-vN; its scores, one by one; version.json with the verdict of the gate, and the rename to
versions/vN; CURRENT; the ledger; the evidence. The next run continues from the last of these that is complete, and ends
with the same weights. A version that the gate holds does not become CURRENT, and the run ends with it.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gorp.data import Task, rows_fingerprint
from gorp.disk import disk_errors
from gorp.errors import CheckpointError, ConfigError
from gorp.evaluation import AccuracyMatrix, can_be_padded
from gorp.layers.targets import Treatment, treatments
from gorp.methods.base import TaskContext
from gorp.progress import Progress
from gorp.sequence import JOINT, Stage, stages
from gorp.storage import file_sha256, write_json
from gorp.training import last_complete, train_task
from gorp.workspace.accepted import keep_configuration
from gorp.workspace.config import RunConfig, effective, num_tasks
from gorp.workspace.guard import is_guarded, measure_guard
from gorp.workspace.held import held_facts, held_in_words, maybe_held
from gorp.workspace.judge import answer_again, is_judged, judge, keep_missing_evidence, show_verdict
from gorp.workspace.leaks import earlier_leaks
from gorp.workspace.learned import keep
from gorp.workspace.mark import check_place
from gorp.workspace.prepare import Session, prepare
from gorp.workspace.preview import preview
from gorp.workspace.record import version_record
from gorp.workspace.scoring import (
    BASE_WEIGHTS,
    is_scored,
    learned_digest,
    load_version,
    not_learned,
    score_row,
    write_matrix,
)
from gorp.workspace.seal import sealed
from gorp.workspace.state import DELTA, MEMORY, METHOD, read_state, write_state
from gorp.workspace.store import Version, Workspace
from gorp.workspace.unfinished import Unfinished
from gorp.workspace.version import TRAINING


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run ended with."""

    matrix: AccuracyMatrix
    """The score matrix R, (T + 1) x T, with the columns in the order of learning."""
    held: Mapping[str, Any] | None
    """The evidence on the version that the gate holds (see `gorp.workspace.gate.gate`), if the run ended with one."""


def run_sequence(
    config: RunConfig, workspace: Path, *, restart: bool = False, progress: Progress | None = None
) -> RunResult:
    """Train the pending tasks, score every task after each, and judge each new version; stop at one that is held.

    A held task is not pending: one of which a version, trained on the same rows, was not accepted by the gate.

    Args:
        config: The configuration; see `load_config`.
        workspace: Folder of the workspace; created if it does not exist.
        restart: Discard the unfinished training of a task instead of continuing it, and train held tasks again.
        progress: Receives the progress of the run.

    Returns:
        The score matrix, and the evidence on the version that was held, if any.

    Raises:
        GorpError: As `prepare`, and for a folder that is not a workspace or that another process writes to; nothing is
            written then. `CheckpointError` if the disk cannot be written and `TrainingError` for a loss that is not
            finite; all earlier versions stay complete then.
    """
    progress = progress or Progress()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "WORLD_SIZE is greater than 1, but only one process can write to a workspace. Run `gorp train` without "
            "torchrun, or use `gorp.training.train_task` to train with several processes."
        )
    store = Workspace(workspace)
    with store.writing(sources(config)):
        if store.exists():
            store.current().check_trained_by_gorp("gorp train")
        session = prepare(config, store, progress)
        if not restart:
            check_unfinished(session)
        for line in [*remarks(session), *_notes(session)]:
            progress.say(line)
        with disk_errors(store.root):
            return _run_pending(session, restart, progress)


def _run_pending(session: Session, restart: bool, progress: Progress) -> RunResult:
    """Train, score and judge the pending tasks; the workspace is checked and locked by the caller."""
    store = session.workspace
    keep_configuration(store.root, effective(session.config), session.config.source)
    for task in session.tasks:
        if task.train is None:
            keep(store, task)
    _measure_versions(session, progress)
    lineage = store.lineage()
    progress.matrix(write_matrix(session, lineage))
    for version in store.late:  # published by a process that was killed before it could show the verdict
        if (held := show_verdict(session, version, progress)) is not None:
            return RunResult(matrix=write_matrix(session, lineage), held=held)
    keep_missing_evidence(store)
    pending = _stages(session, lineage[-1].contains, restart)
    if pending and is_judged(session, lineage[-1]):
        answer_again(session, lineage[-1], progress)
    for stage in pending:
        version = _learn(session, stage, lineage, restart, progress)
        lineage = store.lineage()
        progress.matrix(write_matrix(session, lineage))
        if (held := show_verdict(session, version, progress)) is not None:
            return RunResult(matrix=write_matrix(session, lineage), held=held)
    return RunResult(matrix=write_matrix(session, lineage), held=None)


def plan(
    config: RunConfig, workspace: Path, *, restart: bool = False, progress: Progress | None = None
) -> tuple[list[str], list[Treatment], int]:
    """Return what `run_sequence` would do: the pending tasks, the weights it would train, the model's parameter count.

    Everything is checked; nothing is trained or written. `progress` receives a preview of the rows of each task.

    Example:
        >>> from pathlib import Path
        >>> from gorp import load_config, plan
        >>> pending, treatments, parameters = plan(load_config(Path("bot.yaml")), Path("bot"))
        >>> pending, parameters
        (['october'], 15360504)
    """
    progress = progress or Progress()
    check_place(workspace, sources(config))
    store = Workspace(workspace)
    if store.exists():
        store.current().check_trained_by_gorp("gorp train")
    session = prepare(config, store, progress)
    if not restart:
        check_unfinished(session)
    for line in [*remarks(session), *_notes(session), *preview(session)]:
        progress.say(line)
    total = sum(p.numel() for p in session.model.parameters())
    contains = session.lineage[-1].contains if session.lineage else []
    learned_or_held = {*contains, *(() if restart else session.held)}
    pending = [task.name for task in session.tasks if task.name not in learned_or_held]
    no_rows = TaskContext(
        name="plan",
        index=1,
        seed=config.seed,
        num_steps=1,
        num_tasks=num_tasks(config),
        batches=lambda size, limit: iter(()),
    )
    if pending:
        for line in session.method.warnings(len(contains)):
            progress.say(line)
    session.method.begin_task(session.model, no_rows)  # adds adapters and cores, so that they can be counted
    return pending, treatments(session.model), total


def _notes(session: Session) -> list[str]:
    """Return lines on this model and method that a user should read before training."""
    notes = session.method.notes(session.model)
    if not can_be_padded(session.model, session.tokenizer):
        notes.append("this model does not ignore padding, so only rows of equal length are scored in one batch")
    method = session.method
    if method.stores_data:
        notes.append(
            f"`{method.name}` stores training rows of learned tasks in the workspace, as token ids; deleting the "
            "training file of a task does not delete them"
        )
    if not method.mergeable:
        task_id = ", and every prompt needs the name of its task" if method.needs_task_id else ""
        notes.append(
            f"the result of `{method.name}` cannot be merged into one plain model{task_id}; `gorp eval` scores it "
            "with the method's own inference"
        )
    return notes


def check_unfinished(session: Session) -> None:
    """Check that the next training is the right one, and that an unfinished one can be continued.

    Raises:
        CheckpointError: If a version is gone that may hold a pending task. If an unfinished training was started under
            other settings or with other rows, or if another task now comes before it; the message names what differs
            and what to do.
    """
    lineage = session.lineage
    pending = _stages(session, lineage[-1].contains if lineage else [], restart=False)
    wanted = {task.name for stage in pending for task in stage.tasks}
    for version, task in (maybe_held(session.workspace, lineage) if lineage else {}).items():
        if task in wanted:
            raise CheckpointError(
                f"{session.workspace.root / 'versions' / version}: missing, and the gate may have held this version of "
                f"`{task}`. Restore it from a copy, or train the task again: `gorp train` with --restart."
            )
    for stage in pending[:1]:
        _unfinished(session, stage, lineage).check()
    for stage in pending[1:]:
        folder = session.workspace.run_folder(stage.name)
        if last_complete(folder) is not None:
            raise CheckpointError(
                f"{folder}: holds an unfinished training of task `{stage.name}`, but `tasks:` now lists "
                f"`{pending[0].name}` before it. Put `{stage.name}` first again to continue it, or discard that "
                "training: `gorp train` with --restart."
            )


def remarks(session: Session) -> list[str]:
    """Return a sentence for everything in the workspace that is unusual but allowed."""
    store, names = session.workspace, {JOINT, *(task.name for task in session.tasks)}
    lines = [*store.missing(), *store.remarks()] if session.lineage else []
    lines += [
        held_in_words(task, held_facts(version), current=session.lineage[-1].name)
        for task, version in session.held.items()
    ]
    folders = sorted(path.parent for path in (store.root / "run").glob("*/checkpoint-*"))
    return lines + [
        f"{folder}: holds an unfinished training of a task that is not in the configuration; it is left as it is. "
        "Add a task of that name to continue it, or remove the folder."
        for folder in dict.fromkeys(folders)
        if folder.name not in names
    ]


def sources(config: RunConfig) -> list[Path]:
    """Return the existing local files and folders that a configuration reads: the model and the rows."""
    named = [config.model.path, *(path for task in config.tasks for path in (task.train, task.eval) if path)]
    named += [] if config.gate.guard is None else [config.gate.guard]
    return [Path(path) for path in named if Path(path).is_absolute() and Path(path).exists()]


def _measure_versions(session: Session, progress: Progress) -> None:
    """Create v0 if there is none; measure missing scores of older versions, for example on a new task."""
    store = session.workspace
    if not store.exists():
        scores = score_row(session, "v0", BASE_WEIGHTS, progress)
        measure_guard(session, "v0", {}, progress)
        record = version_record(session, lineage=[], task=None, contains=[], scores=scores, training={})
        store.publish("v0", record)
        return
    lineage = store.lineage()
    for version in lineage:
        digests = version.record["sha256"]
        if not is_scored(session, version) or not is_guarded(session, version.name, digests):
            load_version(session, version)
            score_row(session, version.name, learned_digest(session, digests), progress)
            measure_guard(session, version.name, digests, progress)
    load_version(session, lineage[-1])


def _stages(session: Session, learned: list[str], restart: bool) -> list[Stage[Task]]:
    """Return the trainings that are pending after the tasks `learned`; with `restart` also those of held tasks."""
    tasks = [task for task in session.tasks if restart or task.name not in session.held]
    return stages(tasks, joint=session.method.joint, seed=session.config.seed, learned=learned)


def _unfinished(session: Session, stage: Stage[Task], lineage: list[Version]) -> Unfinished:
    """Return the training of `stage` that starts from the end of `lineage`, or from v0 for a joint method."""
    parent = "v0" if session.method.joint or not lineage else lineage[-1].name
    version = session.workspace.next_name() if lineage else "v1"
    rows = {task.name: rows_fingerprint(task.train) for task in stage.tasks if task.train is not None}
    return Unfinished(session, task=stage.name, rows=rows, parent=parent, version=version)


def _learn(session: Session, stage: Stage[Task], lineage: list[Version], restart: bool, progress: Progress) -> Version:
    """Train one stage or continue its training; score and judge it; publish the version."""
    store = session.workspace
    if session.method.joint:  # joint methods always start from the base model
        lineage = lineage[:1]
        load_version(session, lineage[0])
    work = _unfinished(session, stage, lineage)
    name = work.folder.name.removeprefix(".tmp-")
    if restart:
        work.forget()
    work.check()
    training = work.finished()
    if training is None:
        training = _train(session, stage, work, lineage, progress)
    else:
        progress.say(f"task {stage.name} was already trained; only the scores are missing")
        session.method.load_state_dict(read_state(work.folder, session.base["sha256"]))
    for task in stage.tasks:
        keep(store, task)
    digests = {file: file_sha256(work.folder / file) for file in (DELTA, METHOD)}
    scores = score_row(session, name, learned_digest(session, digests), progress)
    measure_guard(session, name, digests, progress)
    record = version_record(
        session,
        lineage=lineage,
        task=stage.name,
        contains=stage.contains,
        scores=scores,
        training=training,
        gate=judge(session, name, lineage[-1]),
    )
    version = store.publish(name, record)
    progress.say(f"task {stage.name} is saved as version {name}")
    for line in not_learned(session, name, scores, set(stage.contains) - set(lineage[-1].contains)):
        progress.say(line)
    return version


def _train(
    session: Session, stage: Stage[Task], work: Unfinished, lineage: list[Version], progress: Progress
) -> dict[str, Any]:
    """Train and write the resulting tensors into the folder of the version; training.json is written last."""
    if work.begin():
        progress.say(
            f"task {stage.name} starts from the beginning: it was started under other settings, without a checkpoint"
        )
    total = sum(p.numel() for p in session.model.parameters())
    with progress.training(stage.name) as callback:
        result = train_task(
            session.model,
            session.tokenizer,
            session.method,
            stage.rows,
            name=stage.name,
            index=stage.index,
            seed=session.config.seed,
            training=session.config.training,
            encoding=session.config.encoding,
            folder=work.run,
            num_tasks=num_tasks(session.config),
            callbacks=(callback,),
            on_ready=lambda table: progress.treatments(table, total),
            say=progress.say,
        )
    session.workspace.check_held()
    write_state(work.folder, session.method, session.base["sha256"])
    digests = {name: file_sha256(work.folder / name) for name in (DELTA, MEMORY, METHOD)}
    leaks = earlier_leaks(lineage, work.folder)
    training = {"identity": work.identity, **asdict(result), "leak_earlier": leaks, "sha256": digests}
    write_json(work.folder / TRAINING, sealed(training))
    return training
