"""Store the eval rows of tasks and load learned tasks, which need their eval rows but no training rows.

    eval/rows/<task>.json     the eval rows as they were scored, with templates applied, and their fingerprint

A learned task is not trained again, so its `train` is not read and the file may be deleted. Its eval rows are read
again if `eval` is an existing file, which may have grown; otherwise (split from train, a hub data set, a deleted file)
the stored rows are used.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gorp.data import Task, TaskSpec, load_evaluation, load_task, rows_fingerprint
from gorp.data.form import from_list, listed
from gorp.errors import CheckpointError
from gorp.progress import Progress
from gorp.storage import file_sha256, read_json, write_json
from gorp.workspace.seal import is_sealed, sealed
from gorp.workspace.store import Version, Workspace


def kept_path(workspace: Workspace, task: str) -> Path:
    """Return the file of a task's stored eval rows."""
    return workspace.root / "eval" / "rows" / f"{task}.json"


def keep(workspace: Workspace, task: Task) -> None:
    """Store the eval rows of `task`, unless the same rows are stored already."""
    path, fingerprint = kept_path(workspace, task.name), rows_fingerprint(task.eval)
    if path.is_file() and is_kept(kept := read_json(path), task.name) and kept["fingerprint"] == fingerprint:
        return
    described = {"source": task.source, "notes": list(task.notes), "fingerprint": fingerprint}
    write_json(path, sealed({**described, "rows": listed(task.eval)}, task.name))


def recall(
    spec: TaskSpec,
    workspace: Workspace,
    version: Version,
    *,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    date: str,
    progress: Progress,
) -> Task:
    """Load a learned task, without its training rows.

    Args:
        spec: Its current entry in `tasks:`.
        workspace: Holds its stored eval rows.
        version: A version that has learned it; its record has the digest of the training file.
        tokenizer: The model's, for chat templates.
        seed: Seed that selects the rows when a limit is set.
        date: Date for chat templates; see `Encoding`.
        progress: Receives a line if the training file is missing or changed, or the eval rows changed.

    Raises:
        CheckpointError: If the stored rows are damaged and cannot be read again from `eval`.
        DataError: If the rows of `eval` cannot be used.
    """
    path = kept_path(workspace, spec.name)
    readable = spec.eval is not None and Path(spec.eval).is_file()
    if not path.is_file() and not readable:  # the stored rows are lost: the same seed gives them again
        return replace(load_task(spec, tokenizer=tokenizer, seed=seed, date=date), train=None, dev=None)
    kept = read_json(path) if path.is_file() else None
    _report_train_file(spec, version, progress)
    if kept is not None and not is_kept(kept, spec.name):
        if not readable:
            raise CheckpointError(
                f"{path}: the stored eval rows are damaged or changed (their digest differs). Restore the file from a "
                f"copy, or give task {spec.name} a file of eval rows (`eval:`)."
            )
        kept = None
    record = version.record["tasks"][spec.name]
    labels = None if record["labels"] is None else tuple(record["labels"])
    if readable:
        rows, notes = load_evaluation(spec, labels=labels, tokenizer=tokenizer, seed=seed, date=date)
        source = str(spec.eval)
        if kept is not None and kept["fingerprint"] == rows_fingerprint(rows):
            notes, source = tuple(kept["notes"]), kept["source"]
        elif kept is not None:
            progress.say(
                f"{spec.name}: its eval rows changed ({len(kept['rows'])} rows before, {len(rows)} now); every version "
                "is scored on them again"
            )
    else:
        assert kept is not None
        if spec.eval is not None and Path(spec.eval).suffix:
            progress.say(f"{spec.name}: {spec.eval} no longer exists; the {len(kept['rows'])} stored rows are used")
        rows = from_list(kept["rows"])
        notes, source = tuple(kept["notes"]), kept["source"]
    return Task(
        name=spec.name,
        train=None,
        dev=None,
        eval=rows,
        labels=labels,
        metric=record["metric"],
        source=source,
        notes=notes,
    )


def train_file_sha256(spec: TaskSpec) -> str | None:
    """Return the SHA-256 of a task's training file; None for a folder or a hub data set."""
    return file_sha256(Path(spec.train)) if Path(spec.train).is_file() else None


def _report_train_file(spec: TaskSpec, version: Version, progress: Progress) -> None:
    """Print a line if the training file is missing, or differs from the one that was learned."""
    then = version.record["tasks"][spec.name].get("train_sha256")
    if then is None:
        return
    now = train_file_sha256(spec)
    if now is None:
        progress.say(f"{spec.name}: {spec.train} no longer exists; it is not needed, because the task is learned")
    elif now != then:
        progress.say(
            f"{spec.name}: {spec.train} has changed since it was learned; a learned task is not trained again. Add the "
            "new rows as another task"
        )


def is_kept(kept: Any, task: str) -> bool:
    """Whether the stored rows are unchanged and belong to this task."""
    return is_sealed(kept, task)
