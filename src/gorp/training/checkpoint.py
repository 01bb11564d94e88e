"""Checkpoints of a running task: what gorp writes besides the Trainer's own optimizer, scheduler and random states.

checkpoint-N/trainable.safetensors   each trainable parameter, by its name in the model with adapters; in its header the
                                     seconds that the task has taken so far
checkpoint-N/method.safetensors      the method's state: frames, deltas, sketches, what it carries between tasks
checkpoint-N/complete.json           SHA-256 of every other file; written last, when all others are on the disk

A folder without complete.json was not finished and is never read. Any other checkpoint is read only if each of its
files has the digest in complete.json.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from gorp.errors import CheckpointError
from gorp.methods.base import Method
from gorp.permissions import restrict
from gorp.storage import file_sha256, read_json, read_tensors, sync_folder, write_json, write_tensors


COMPLETE = "complete.json"
RESTART = "Restore the file from a copy, or start the task again: `gorp train` with --restart."


def save_checkpoint(folder: Path, model: nn.Module, method: Method, *, seconds: float | None = None) -> None:
    """Write the trainable parameters and the method's state, bit for bit.

    Args:
        folder: The checkpoint.
        model: The model in the middle of a task.
        method: The method.
        seconds: Time that the task has taken so far, in all parts of an interrupted training; None if not known.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    metadata = {"method": method.name} | ({} if seconds is None else {"seconds": seconds})
    write_tensors(folder / "trainable.safetensors", trainable, metadata)
    write_tensors(folder / "method.safetensors", method.state_dict(), {"method": method.name})


def mark_complete(folder: Path, *, ranks: int = 1) -> None:
    """Sync each file of `folder` to the disk, then write the digests of all into complete.json.

    Args:
        folder: A checkpoint in which all other files are written.
        ranks: Number of processes that wrote it; each wrote its random state.
    """
    restrict(folder)  # the Trainer does not know that it writes into a private folder
    files = _files(folder)
    for path in files.values():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
    digests = {name: file_sha256(path) for name, path in files.items()}
    write_json(folder / COMPLETE, {"complete": True, "ranks": ranks, "sha256": digests})


def remove_others(newest: Path, *, keep: int | None) -> None:
    """Remove checkpoints that are no longer needed, now that `newest` is complete.

    Folders without complete.json go, and so do folders with more steps than `newest`: they are damaged, since training
    did not resume from them.

    Args:
        newest: The checkpoint that was written last.
        keep: Number of checkpoints to keep, `newest` included; None keeps all older ones.
    """
    complete = _newest_first(newest.parent)
    kept = complete[complete.index(newest) :][:keep]
    for path in newest.parent.iterdir():
        if re.fullmatch(r"checkpoint-\d+", path.name) and path not in kept:
            shutil.rmtree(path, ignore_errors=True)  # a folder that cannot be removed does no harm


def verify(folder: Path, *, ranks: int = 1) -> None:
    """Raise if a file of a checkpoint is missing or has changed since it was written.

    Args:
        folder: A checkpoint with complete.json.
        ranks: Number of processes that will resume from it.

    Raises:
        CheckpointError: If a file is missing or damaged (the message names it), or the number of processes differs.
    """
    path = folder / COMPLETE
    try:
        complete = read_json(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {RESTART}") from None
    digests = complete.get("sha256") if isinstance(complete, dict) else None
    if not isinstance(digests, dict) or not digests:
        raise CheckpointError(f"{path}: holds no digests, so the checkpoint's files cannot be verified. {RESTART}")
    files = _files(folder)
    for name, digest in digests.items():
        if name not in files:
            raise CheckpointError(f"{folder / name}: the file is missing, but {COMPLETE} lists it. {RESTART}")
        if file_sha256(files[name]) != digest:
            raise CheckpointError(f"{folder / name}: damaged; its SHA-256 is not the one in {COMPLETE}. {RESTART}")
    if complete.get("ranks") != ranks:
        raise CheckpointError(
            f"{folder}: written by {complete.get('ranks')} processes, and {ranks} would resume from it. Start the "
            f"same number of processes. {RESTART}"
        )


@torch.no_grad()
def load_checkpoint(folder: Path, model: nn.Module, method: Method) -> None:
    """Load what `save_checkpoint` wrote into a method and a model that `begin_task` has prepared.

    Raises:
        CheckpointError: If another method wrote the checkpoint, or the model had other trainable parameters.
    """
    tensors, metadata = read_tensors(folder / "trainable.safetensors")
    if metadata.get("method") != method.name:
        raise CheckpointError(
            f"{folder}: written by method `{metadata.get('method')}`, and this run uses `{method.name}`. "
            "Start the task again (--restart), or use the old method."
        )
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in trainable.items()} != {n: t.shape for n, t in tensors.items()}:
        different = sorted(set(trainable) ^ set(tensors))[:3]
        raise CheckpointError(
            f"{folder}: holds other trainable weights than this configuration makes (for example "
            f"{', '.join(different)}). Start the task again (--restart), or undo the change of the configuration."
        )
    for name, parameter in trainable.items():
        parameter.copy_(tensors[name])
    method.load_state_dict(read_tensors(folder / "method.safetensors")[0])


def seconds_until(folder: Path) -> float:
    """Return the seconds that a task had taken when a checkpoint was written; 0 if gorp 0.1.0 wrote it."""
    return float(read_tensors(folder / "trainable.safetensors", only=())[1].get("seconds", 0.0))


def last_complete(folder: Path) -> Path | None:
    """Return the complete checkpoint with the most steps, or None. Its files are not verified."""
    return next(iter(_newest_first(folder)), None)


def last_whole(folder: Path, *, ranks: int = 1, say: Callable[[str], None] = lambda line: None) -> Path | None:
    """Return the complete and undamaged checkpoint with the most steps, or None if `folder` holds no checkpoint.

    Args:
        folder: Folder of the task's checkpoints.
        ranks: Number of processes that will resume from it.
        say: Called with a line of text if a damaged checkpoint is skipped.

    Raises:
        CheckpointError: If there are checkpoints and all are damaged; the message names a file of the newest.
    """
    first: CheckpointError | None = None
    for path in _newest_first(folder):
        try:
            verify(path, ranks=ranks)
        except CheckpointError as error:
            first = first or error
            continue
        if first is not None:
            damage = str(first).removesuffix(f" {RESTART}")
            say(f"{damage} Training uses an older checkpoint, which is whole: {path.name}")
        return path
    if first is not None:
        raise first
    return None


def _newest_first(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, those with the most steps first."""
    steps = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / COMPLETE).exists()
    }
    return [steps[step] for step in sorted(steps, reverse=True)]


def _files(folder: Path) -> dict[str, Path]:
    """Return every file below `folder` except complete.json, by its path relative to `folder`."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / COMPLETE]
    return {path.relative_to(folder).as_posix(): path for path in paths}
