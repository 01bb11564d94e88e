"""What a run is going to do, checked and said before anything is trained or written."""

from pathlib import Path

from gorp.data import Task, rows_fingerprint
from gorp.errors import CheckpointError
from gorp.evaluation import can_be_padded
from gorp.layers.targets import Treatment, treatments
from gorp.methods.base import TaskContext
from gorp.progress import Progress
from gorp.sequence import JOINT, Stage, stages
from gorp.training import last_complete
from gorp.workspace.config import RunConfig, num_tasks
from gorp.workspace.held import held_facts, held_in_words, maybe_held
from gorp.workspace.mark import check_place
from gorp.workspace.prepare import Session, prepare
from gorp.workspace.preview import preview
from gorp.workspace.store import Version, Workspace
from gorp.workspace.unfinished import Unfinished


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
    for line in [*remarks(session), *notes(session), *preview(session)]:
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


def check_unfinished(session: Session) -> None:
    """Check that the next training is the right one, and that an unfinished one can be continued.

    Raises:
        CheckpointError: If a version is gone that may hold a pending task. If an unfinished training was started under
            other settings or with other rows, or if another task now comes before it; the message names what differs
            and what to do.
    """
    lineage = session.lineage
    pending = pending_stages(session, lineage[-1].contains if lineage else [], restart=False)
    wanted = {task.name for stage in pending for task in stage.tasks}
    for version, task in (maybe_held(session.workspace, lineage) if lineage else {}).items():
        if task in wanted:
            raise CheckpointError(
                f"{session.workspace.root / 'versions' / version}: missing, and the gate may have held this version of "
                f"`{task}`. Restore it from a copy, or train the task again: `gorp train` with --restart."
            )
    for stage in pending[:1]:
        unfinished(session, stage, lineage).check()
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


def notes(session: Session) -> list[str]:
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


def sources(config: RunConfig) -> list[Path]:
    """Return the existing local files and folders that a configuration reads: the model and the rows."""
    named = [config.model.path, *(path for task in config.tasks for path in (task.train, task.eval) if path)]
    named += [] if config.gate.guard is None else [config.gate.guard]
    return [Path(path) for path in named if Path(path).is_absolute() and Path(path).exists()]


def pending_stages(session: Session, learned: list[str], restart: bool) -> list[Stage[Task]]:
    """Return the trainings that are pending after the tasks `learned`; with `restart` also those of held tasks."""
    tasks = [task for task in session.tasks if restart or task.name not in session.held]
    return stages(tasks, joint=session.method.joint, seed=session.config.seed, learned=learned)


def unfinished(session: Session, stage: Stage[Task], lineage: list[Version]) -> Unfinished:
    """Return the training of `stage` that starts from the end of `lineage`, or from v0 for a joint method."""
    parent = "v0" if session.method.joint or not lineage else lineage[-1].name
    version = session.workspace.next_name() if lineage else "v1"
    rows = {task.name: rows_fingerprint(task.train) for task in stage.tasks if task.train is not None}
    return Unfinished(session, task=stage.name, rows=rows, parent=parent, version=version)
