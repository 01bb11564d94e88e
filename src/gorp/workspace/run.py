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

from gorp.data import Task
from gorp.disk import disk_errors
from gorp.errors import ConfigError
from gorp.evaluation import AccuracyMatrix
from gorp.progress import Progress
from gorp.sequence import Stage
from gorp.storage import file_sha256, write_json
from gorp.training import train_task
from gorp.workspace.accepted import keep_configuration
from gorp.workspace.config import RunConfig, effective, num_tasks
from gorp.workspace.guard import is_guarded, measure_guard
from gorp.workspace.judge import answer_again, is_judged, judge, keep_missing_evidence, show_verdict
from gorp.workspace.leaks import earlier_leaks
from gorp.workspace.learned import keep
from gorp.workspace.pending import check_unfinished, notes, pending_stages, remarks, sources, unfinished
from gorp.workspace.prepare import Session, prepare
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
        for line in [*remarks(session), *notes(session)]:
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
    pending = pending_stages(session, lineage[-1].contains, restart)
    if pending and is_judged(session, lineage[-1]):
        answer_again(session, lineage[-1], progress)
    for stage in pending:
        version = _learn(session, stage, lineage, restart, progress)
        lineage = store.lineage()
        progress.matrix(write_matrix(session, lineage))
        if (held := show_verdict(session, version, progress)) is not None:
            return RunResult(matrix=write_matrix(session, lineage), held=held)
    return RunResult(matrix=write_matrix(session, lineage), held=None)


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


def _learn(session: Session, stage: Stage[Task], lineage: list[Version], restart: bool, progress: Progress) -> Version:
    """Train one stage or continue its training; score and judge it; publish the version."""
    store = session.workspace
    if session.method.joint:  # joint methods always start from the base model
        lineage = lineage[:1]
        load_version(session, lineage[0])
    work = unfinished(session, stage, lineage)
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
