"""What a workspace needs of a learned task: the rows that the task is judged by, and none that it was trained on.

    eval/rows/<task>.json     the eval rows as they were scored, rendered, with their fingerprint

A learned task is not trained again, so its `train` is not read: the file may be gone. Its eval rows are read again
where `eval` is a file that is there, and may have grown; elsewhere (cut from train, a hub data set, a file that is
gone) they are those kept here.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gorp.data import Task, TaskSpec, load_evaluation, load_task, rows_fingerprint
from gorp.data.form import from_list, listed
from gorp.errors import CheckpointError
from gorp.progress import Progress
from gorp.storage import read_json, write_json
from gorp.workspace.seal import SEAL, is_whole, sealed
from gorp.workspace.state import file_sha256
from gorp.workspace.store import Version, Workspace


def kept_path(workspace: Workspace, task: str) -> Path:
    """Where the eval rows of a task are kept."""
    return workspace.root / "eval" / "rows" / f"{task}.json"


def keep(workspace: Workspace, task: Task) -> None:
    """Write down the rows that `task` is judged by, unless they are there already."""
    path, fingerprint = kept_path(workspace, task.name), rows_fingerprint(task.eval)
    if path.is_file() and _is_whole(kept := read_json(path), task.name) and kept["fingerprint"] == fingerprint:
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
    """A learned task, without its train rows.

    Args:
        spec: Its entry in `tasks:` as it is now.
        workspace: Where its eval rows are kept.
        version: One that has learned it; its record tells which train file that was.
        tokenizer: The model's, for chat templates.
        seed: Decides which rows the limits keep.
        date: For chat templates; see `Encoding`.
        progress: Told when the train file is gone or changed, and when the eval rows changed.

    Raises:
        CheckpointError: If the kept rows are damaged and cannot be read anew.
        DataError: If the rows of `eval` cannot be used.
    """
    path = kept_path(workspace, spec.name)
    readable = spec.eval is not None and Path(spec.eval).is_file()
    if not path.is_file() and not readable:  # the kept rows are lost: they are read and cut as they once were
        return replace(load_task(spec, tokenizer=tokenizer, seed=seed, date=date), train=None, dev=None)
    kept = read_json(path) if path.is_file() else None
    _tell_of_train(spec, version, progress)
    if kept is not None and not _is_whole(kept, spec.name):
        if not readable:
            raise CheckpointError(
                f"{path}: not the eval rows that were kept (their digest differs). Restore the file from a copy, "
                f"or give task {spec.name} a file of eval rows (`eval:`)."
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
                f"{spec.name}: its eval rows changed, {len(kept['rows'])} rows then and {len(rows)} now; every version "
                "is scored on them again"
            )
    else:
        assert kept is not None
        if spec.eval is not None and Path(spec.eval).suffix:
            progress.say(f"{spec.name}: {spec.eval} is gone; the {len(kept['rows'])} rows that were kept are scored")
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
    """SHA-256 of the file a task is trained on; None for a folder or a hub data set."""
    return file_sha256(Path(spec.train)) if Path(spec.train).is_file() else None


def _tell_of_train(spec: TaskSpec, version: Version, progress: Progress) -> None:
    """One line where the train file is gone, or is another than the one that was learned."""
    then = version.record["tasks"][spec.name].get("train_sha256")
    if then is None:
        return
    now = train_file_sha256(spec)
    if now is None:
        progress.say(f"{spec.name}: already learned, so its training rows are not needed ({spec.train} is gone)")
    elif now != then:
        progress.say(
            f"{spec.name}: {spec.train} has changed since it was learned; a learned task is not trained again. Add new "
            "rows as a task of another name"
        )


def _is_whole(kept: Any, task: str) -> bool:
    """Whether kept rows are as they were written, for this task."""
    return isinstance(kept, dict) and SEAL in kept and is_whole(kept, task)
