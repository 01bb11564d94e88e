"""Train what is pending, one task after another; score every task after each; lose nothing when interrupted.

For each task, in this order: checkpoints in run/<task>; the finished task's tensors and training.json in
versions/.tmp-vN; its scores, one by one; version.json and the rename; CURRENT; the ledger. A run that is killed goes
on from the last of these that is whole, and ends with the same weights.
"""

import os
from dataclasses import asdict
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
from gorp.storage import write_json
from gorp.training import last_complete, train_task
from gorp.workspace.accepted import keep_configuration
from gorp.workspace.config import RunConfig, effective, num_tasks
from gorp.workspace.leaks import earlier_leaks
from gorp.workspace.learned import keep
from gorp.workspace.mark import check_place
from gorp.workspace.prepare import Session, prepare
from gorp.workspace.preview import preview
from gorp.workspace.record import version_record
from gorp.workspace.scoring import BASE_WEIGHTS, enter, is_scored, learned_digest, not_learned, score_row, write_matrix
from gorp.workspace.seal import sealed
from gorp.workspace.state import DELTA, MEMORY, METHOD, file_sha256, read_state, write_state
from gorp.workspace.store import Version, Workspace
from gorp.workspace.unfinished import Unfinished
from gorp.workspace.version import TRAINING


def run_sequence(
    config: RunConfig, workspace: Path, *, restart: bool = False, progress: Progress | None = None
) -> AccuracyMatrix:
    """Train all tasks that the workspace has not learned, and score every task after each.

    Args:
        config: What to do; see `load_config`.
        workspace: Its folder; made when it does not exist.
        restart: Forget the unfinished training of a task, instead of going on with it.
        progress: What to show.

    Returns:
        The accuracy matrix, (T + 1) x T.

    Raises:
        GorpError: As `prepare`, and for a folder that is something else or that another process writes to, before
            anything is written; `CheckpointError` when the disk refuses and `TrainingError` for a loss that is not
            finite, after which all earlier versions are whole.
    """
    progress = progress or Progress()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "a workspace has one writer, and this is one of several ranks. Run `gorp train` without torchrun; with "
            "several ranks use `gorp.training.train_task`."
        )
    store = Workspace(workspace)
    with store.writing(sources(config)):
        session = prepare(config, store, progress)
        if not restart:
            check_unfinished(session)
        for line in [*remarks(session), *_notes(session)]:
            progress.say(line)
        with disk_errors(store.root):
            return _go_on(session, restart, progress)


def _go_on(session: Session, restart: bool, progress: Progress) -> AccuracyMatrix:
    """Write what is pending into the workspace, which is checked and held."""
    store = session.workspace
    keep_configuration(store.root, effective(session.config), session.config.source)
    for version in store.unsettled():
        store.settle(version)
    for task in session.tasks:
        if task.train is None:
            keep(store, task)
    _measure_versions(session, progress)
    lineage = store.lineage()
    progress.matrix(write_matrix(session, lineage))
    for stage in _stages(session, lineage[-1].contains):
        _learn(session, stage, lineage, restart, progress)
        lineage = store.lineage()
        progress.matrix(write_matrix(session, lineage))
    return write_matrix(session, lineage)


def plan(
    config: RunConfig, workspace: Path, *, restart: bool = False, progress: Progress | None = None
) -> tuple[list[str], list[Treatment], int]:
    """What `run_sequence` would do: the pending tasks, the weights it would train, the model's parameters.

    Everything is checked; nothing is written, and nothing is trained. `progress` hears of the rows of each task.

    Example:
        >>> from pathlib import Path
        >>> from gorp import load_config, plan
        >>> pending, treatments, parameters = plan(load_config(Path("bot.yaml")), Path("bot"))
        >>> pending, parameters
        (['october'], 15360504)
    """
    progress = progress or Progress()
    check_place(workspace, sources(config))
    session = prepare(config, Workspace(workspace), progress)
    if not restart:
        check_unfinished(session)
    for line in [*remarks(session), *_notes(session), *preview(session)]:
        progress.say(line)
    total = sum(p.numel() for p in session.model.parameters())
    contains = session.lineage[-1].contains if session.lineage else []
    pending = [task.name for task in session.tasks if task.name not in contains]
    nothing = TaskContext(
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
    session.method.begin_task(session.model, nothing)
    return pending, treatments(session.model), total


def _notes(session: Session) -> list[str]:
    """What a user should know of this model and method before anything is trained."""
    notes = session.method.notes(session.model)
    if not can_be_padded(session.model, session.tokenizer):
        notes.append("this model reads its padding, so rows are scored in batches of equal length")
    method = session.method
    if method.stores_data:
        notes.append(
            f"`{method.name}` keeps training rows of learned tasks in the workspace, as token ids: deleting a task's "
            "file does not delete them"
        )
    if not method.mergeable:
        asks = ", and it must be told the task of every question" if method.needs_task_id else ""
        notes.append(f"what `{method.name}` learns is no one plain model{asks}; `gorp eval` scores it as it answers")
    return notes


def check_unfinished(session: Session) -> None:
    """Refuse to go on with a training that was begun under other conditions, or that would have to wait for another.

    Raises:
        CheckpointError: It names what differs, and what to do.
    """
    lineage = session.lineage
    pending = _stages(session, lineage[-1].contains if lineage else [])
    for stage in pending[:1]:
        _unfinished(session, stage, lineage).check()
    for stage in pending[1:]:
        folder = session.workspace.run_folder(stage.name)
        if last_complete(folder) is not None:
            raise CheckpointError(
                f"{folder}: holds an unfinished training of task `{stage.name}`, before which task `{pending[0].name}` "
                f"would be learned now. Put `{stage.name}` first again, or begin it anew when its turn comes: "
                "`gorp train` with --restart."
            )


def remarks(session: Session) -> list[str]:
    """What is unusual in the workspace and stops nothing, a sentence each."""
    store, names = session.workspace, {JOINT, *(task.name for task in session.tasks)}
    lines = store.remarks() if session.lineage else []
    folders = sorted(path.parent for path in (store.root / "run").glob("*/checkpoint-*"))
    return lines + [
        f"{folder}: holds an unfinished training of a task that the configuration does not name; it is left alone. "
        "Give the task its name again to go on with it, or remove the folder."
        for folder in dict.fromkeys(folders)
        if folder.name not in names
    ]


def sources(config: RunConfig) -> list[Path]:
    """The files and folders that a configuration reads: the model, the rows."""
    named = [config.model.path, *(path for task in config.tasks for path in (task.train, task.eval) if path)]
    return [Path(path) for path in named if Path(path).is_absolute() and Path(path).exists()]


def _measure_versions(session: Session, progress: Progress) -> None:
    """Make v0 if there is none; fill the cells that older versions lack, for example a new task's column."""
    store = session.workspace
    if not store.exists():
        scores = score_row(session, "v0", BASE_WEIGHTS, progress)
        record = version_record(session, lineage=[], task=None, contains=[], scores=scores, training={})
        store.publish("v0", record)
        return
    lineage = store.lineage()
    for version in lineage:
        if not is_scored(session, version):
            enter(session, version)
            score_row(session, version.name, learned_digest(session, version.record["sha256"]), progress)
    enter(session, lineage[-1])


def _stages(session: Session, learned: list[str]) -> list[Stage[Task]]:
    """The trainings that are pending when the tasks `learned` are."""
    return stages(session.tasks, joint=session.method.joint, seed=session.config.seed, learned=learned)


def _unfinished(session: Session, stage: Stage[Task], lineage: list[Version]) -> Unfinished:
    """The training of `stage`, as it would begin after `lineage`; a joint method begins at the base model."""
    parent = "v0" if session.method.joint or not lineage else lineage[-1].name
    version = session.workspace.next_name() if lineage else "v1"
    rows = {task.name: rows_fingerprint(task.train) for task in stage.tasks if task.train is not None}
    return Unfinished(session, task=stage.name, rows=rows, parent=parent, version=version)


def _learn(session: Session, stage: Stage[Task], lineage: list[Version], restart: bool, progress: Progress) -> None:
    """Train one stage, or go on with it; score; publish the version."""
    store = session.workspace
    if session.method.joint:  # always from the base model
        lineage = lineage[:1]
        enter(session, lineage[0])
    work = _unfinished(session, stage, lineage)
    name = work.folder.name.removeprefix(".tmp-")
    if restart:
        work.forget()
    work.check()
    training = work.finished()
    if training is None:
        training = _train(session, stage, work, lineage, progress)
    else:
        progress.say(f"task {stage.name} was trained to its end before; what is left is to score it")
        session.method.load_state_dict(read_state(work.folder, session.base["sha256"]))
    for task in stage.tasks:
        keep(store, task)
    digests = {file: file_sha256(work.folder / file) for file in (DELTA, METHOD)}
    scores = score_row(session, name, learned_digest(session, digests), progress)
    record = version_record(
        session, lineage=lineage, task=stage.name, contains=stage.contains, scores=scores, training=training
    )
    store.publish(name, record)
    progress.say(f"{name} is written: {stage.name}")
    for line in not_learned(session, name, scores, set(stage.contains) - set(lineage[-1].contains)):
        progress.say(line)


def _train(
    session: Session, stage: Stage[Task], work: Unfinished, lineage: list[Version], progress: Progress
) -> dict[str, Any]:
    """Train, and write what the task leaves into the folder of its version; training.json last."""
    if work.begin():
        progress.say(f"{stage.name} begins anew: it was begun otherwise, and nothing of that had been saved")
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
