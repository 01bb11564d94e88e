"""Train what is pending, one task after another; score every task after each; lose nothing when interrupted.

For each task, in this order: checkpoints in run/<task>; the finished task's tensors and training.json in
versions/.tmp-vN; its scores, one by one; version.json and the rename; CURRENT; the ledger. A run that is killed goes
on from the last of these that is whole, and ends with the same weights.
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from gorp.errors import CheckpointError, ConfigError, nearest
from gorp.evaluation import AccuracyMatrix
from gorp.method import TaskContext
from gorp.progress import Progress
from gorp.storage import read_json, write_json
from gorp.targets import Treatment, treatments
from gorp.training import train_task
from gorp.workspace.config import RunConfig, build_method, parse_config
from gorp.workspace.prepare import Session, prepare
from gorp.workspace.record import version_record
from gorp.workspace.scoring import BASE_WEIGHTS, delta_digest, is_scored, score_row, write_matrix
from gorp.workspace.state import DELTA, file_sha256, read_state, write_state
from gorp.workspace.store import TRAINING, Version, Workspace


JOINT = "joint"
"""What the one training of a method on all tasks together is called."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training: a task, or all of them for a joint method."""

    name: str
    index: int
    """Counted from 1."""
    contains: list[str]
    """What the version it leads to has learned."""
    rows: Dataset


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
        GorpError: As `prepare`, before anything is written; `TrainingError` for a loss that is not finite, after which
            all earlier versions are whole.
    """
    progress = progress or Progress()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "a workspace has one writer, and this is one of several ranks. Run `gorp train` without torchrun; with "
            "several ranks use `gorp.training.train_task`."
        )
    session = prepare(config, Workspace(workspace))
    store = session.workspace
    for version in store.unsettled():
        store.settle(version)
    _measure_versions(session, progress)
    lineage = store.lineage()
    progress.matrix(write_matrix(session, lineage))
    for stage in _stages(session, lineage[-1]):
        _learn(session, stage, lineage, restart, progress)
        lineage = store.lineage()
        progress.matrix(write_matrix(session, lineage))
    return write_matrix(session, lineage)


def plan(config: RunConfig, workspace: Path) -> tuple[list[str], list[Treatment], int]:
    """What `run_sequence` would do: the pending tasks, the weights it would train, the model's parameters.

    Everything is checked; nothing is written, and nothing is trained.
    """
    session = prepare(config, Workspace(workspace))
    total = sum(p.numel() for p in session.model.parameters())
    contains = session.lineage[-1].contains if session.lineage else []
    pending = [task.name for task in session.tasks if task.name not in contains]
    nothing = TaskContext(name="plan", index=1, seed=config.seed, num_steps=1, batches=lambda size, limit: iter(()))
    session.method.begin_task(session.model, nothing)
    return pending, treatments(session.model), total


def evaluate_version(
    workspace: Path, *, version: str | None = None, task: str | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Score a version again, whatever was measured before, and keep the scores.

    Args:
        workspace: Its folder.
        version: CURRENT when None.
        task: All tasks when None.
        progress: What to show.

    Returns:
        `version`, and `scores`: task -> score, rows, metric.

    Raises:
        ConfigError: For an unknown version or task.
        CheckpointError: If the version or its base model is not as it was.
    """
    store = Workspace(workspace)
    chosen = store.current() if version is None else store.version(version)
    config = parse_config(store.current().record["config"], store.root)
    names = [spec.name for spec in config.tasks]
    if task is not None and task not in names:
        raise ConfigError(f"no task `{task}` in {workspace}; there are {', '.join(names)}.{nearest(task, names)}")
    session = prepare(config, store)
    _enter(session, chosen)
    wanted = [item for item in session.tasks if task in (None, item.name)]
    progress = progress or Progress()
    cells = score_row(session, chosen.name, delta_digest(chosen), progress, tasks=wanted, fresh=True)
    write_matrix(session, store.lineage())
    return {"version": chosen.name, "scores": cells}


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
            _enter(session, version)
            score_row(session, version.name, delta_digest(version), progress)
    _enter(session, lineage[-1])


def _enter(session: Session, version: Version) -> None:
    """Make the method what it was after `version`; v0 is the method before its first task."""
    state = version.method_state(session.base["sha256"])
    session.method.load_state_dict(state or build_method(session.config).state_dict())


def _stages(session: Session, current: Version) -> list[Stage]:
    """The trainings that are pending."""
    names, done = [task.name for task in session.tasks], current.contains
    if not session.method.joint:
        stages = enumerate(session.tasks, 1)
        return [Stage(name=t.name, index=i, contains=names[:i], rows=t.train) for i, t in stages if i > len(done)]
    if done == names:
        return []
    rows = concatenate_datasets([task.train for task in session.tasks])
    shuffled = rows.shuffle(seed=session.config.seed, keep_in_memory=True)
    return [Stage(name=JOINT, index=1, contains=names, rows=shuffled)]


def _learn(session: Session, stage: Stage, lineage: list[Version], restart: bool, progress: Progress) -> None:
    """Train one stage, or go on with it; score; publish the version."""
    store = session.workspace
    if session.method.joint:  # always from the base model
        lineage = lineage[:1]
        _enter(session, lineage[0])
    name, run = store.next_name(), store.run_folder(stage.name)
    folder = store.prepared(name)
    if restart:
        for path in (run, folder):
            shutil.rmtree(path, ignore_errors=True)
    identity = {
        "task": stage.name,
        "parent": lineage[-1].name,
        "rows": {task: session.fingerprints[task] for task in stage.contains},
    }
    training = _finished(session, folder, identity) or _train(session, stage, run, folder, identity, progress)
    scores = score_row(session, name, file_sha256(folder / DELTA), progress)
    record = version_record(
        session, lineage=lineage, task=stage.name, contains=stage.contains, scores=scores, training=training
    )
    store.publish(name, record)
    progress.say(f"{name} is written: {stage.name}")


def _finished(session: Session, folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """What a training reported that had ended when the run was interrupted; the method gets the state it left."""
    if not (folder / TRAINING).is_file():
        return None
    training = read_json(folder / TRAINING)
    if training["identity"] != identity:
        return None
    session.method.load_state_dict(read_state(folder, session.base["sha256"]))
    return training


def _train(
    session: Session, stage: Stage, run: Path, folder: Path, identity: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Train, and write what the task leaves into the folder of its version; training.json last."""
    _claim(run, identity)
    shutil.rmtree(folder, ignore_errors=True)
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
            folder=run,
            callbacks=(callback,),
            on_ready=lambda table: progress.treatments(table, total),
        )
    write_state(folder, session.method, session.base["sha256"])
    training = {"identity": identity, **asdict(result)}
    write_json(folder / TRAINING, training)
    return training


def _claim(run: Path, identity: dict[str, Any]) -> None:
    """Checkpoints are gone on from only if they are of the same rows and the same parent."""
    path = run / "identity.json"
    if path.is_file() and read_json(path) != identity:
        raise CheckpointError(
            f"{run}: an unfinished training of other rows, or from another version. Start the task anew (--restart), "
            "or restore the rows."
        )
    write_json(path, identity)
