"""What a task in progress leaves on disk, beside the Trainer's own optimizer, scheduler and random states.

checkpoint-N/trainable.safetensors   every parameter that is being trained, by its name in the wrapped model
checkpoint-N/method.safetensors      the method's state: frames, folds, sketches, what it carries between tasks
checkpoint-N/complete.json           the SHA-256 of every other file; written last, once they are all on the disk

A folder without complete.json was interrupted and is never read. Of the others a file is read only when every file of
its folder has the digest that complete.json gives it.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from gorp.errors import CheckpointError
from gorp.methods.base import Method
from gorp.storage import read_json, read_tensors, sync_folder, write_json, write_tensors


COMPLETE = "complete.json"
ANEW = "Restore the file from a copy, or begin the task anew: `gorp train` with --restart."


def save_checkpoint(folder: Path, model: nn.Module, method: Method) -> None:
    """Write the trainable weights and the method's state, exactly as they are."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    write_tensors(folder / "trainable.safetensors", trainable, {"method": method.name})
    write_tensors(folder / "method.safetensors", method.state_dict(), {"method": method.name})


def mark_complete(folder: Path, *, ranks: int = 1) -> None:
    """Sync every file of `folder` to the disk, and write the digests of them all into complete.json.

    Args:
        folder: A checkpoint that nothing more will be written into.
        ranks: How many processes wrote it: each left its random state.
    """
    files = _files(folder)
    for path in files.values():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
    digests = {name: _sha256(path) for name, path in files.items()}
    write_json(folder / COMPLETE, {"complete": True, "ranks": ranks, "sha256": digests})


def remove_others(newest: Path, *, keep: int | None) -> None:
    """Remove checkpoints beside `newest`, which is complete: those that training did not go on from, and older ones.

    A folder of more steps than `newest` is damaged, or training would have gone on from it.

    Args:
        newest: The checkpoint that was written last.
        keep: How many stay, `newest` included; None removes no older one.
    """
    complete = _newest_first(newest.parent)
    kept = complete[complete.index(newest) :][:keep]
    for path in newest.parent.iterdir():
        if re.fullmatch(r"checkpoint-\d+", path.name) and path not in kept:
            shutil.rmtree(path, ignore_errors=True)  # one that stays does no harm


def verify(folder: Path, *, ranks: int = 1) -> None:
    """Refuse a checkpoint of which a file is missing or has other bytes than when it was written.

    Args:
        folder: With complete.json.
        ranks: How many processes are to go on from it.

    Raises:
        CheckpointError: It names the file.
    """
    path = folder / COMPLETE
    try:
        complete = read_json(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {ANEW}") from None
    digests = complete.get("sha256") if isinstance(complete, dict) else None
    if not isinstance(digests, dict) or not digests:
        raise CheckpointError(f"{path}: holds no digests of the checkpoint's files, so none can be trusted. {ANEW}")
    files = _files(folder)
    for name, digest in digests.items():
        if name not in files:
            raise CheckpointError(f"{folder / name}: no such file, but {COMPLETE} lists it. {ANEW}")
        if _sha256(files[name]) != digest:
            raise CheckpointError(f"{folder / name}: damaged; its SHA-256 is not the one in {COMPLETE}. {ANEW}")
    if complete.get("ranks") != ranks:
        raise CheckpointError(
            f"{folder}: written by {complete.get('ranks')} processes, and {ranks} would go on from it. Start as many "
            f"again. {ANEW}"
        )


@torch.no_grad()
def load_checkpoint(folder: Path, model: nn.Module, method: Method) -> None:
    """Put back what `save_checkpoint` wrote, into a model that `begin_task` has prepared.

    Raises:
        CheckpointError: If the checkpoint is of another method, or of a model with other trainable weights.
    """
    tensors, metadata = read_tensors(folder / "trainable.safetensors")
    if metadata.get("method") != method.name:
        raise CheckpointError(
            f"{folder}: written by method `{metadata.get('method')}`, and this run uses `{method.name}`. "
            "Start the task anew (--restart), or go back to the old method."
        )
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in trainable.items()} != {n: t.shape for n, t in tensors.items()}:
        odd = sorted(set(trainable) ^ set(tensors))[:3]
        raise CheckpointError(
            f"{folder}: holds other trainable weights than this configuration makes (for example {', '.join(odd)}). "
            "Start the task anew (--restart), or undo the change of the configuration."
        )
    for name, parameter in trainable.items():
        parameter.copy_(tensors[name])
    method.load_state_dict(read_tensors(folder / "method.safetensors")[0])


def last_complete(folder: Path) -> Path | None:
    """The checkpoint with the most steps among those that were written to their end, or None. It may be damaged."""
    return next(iter(_newest_first(folder)), None)


def last_whole(folder: Path, *, ranks: int = 1, say: Callable[[str], None] = lambda line: None) -> Path | None:
    """The checkpoint with the most steps among those of which every file is as it was written; None if there are none.

    Args:
        folder: Of the task.
        ranks: How many processes are to go on from it.
        say: Told in a line of a damaged checkpoint that is passed over.

    Raises:
        CheckpointError: If there are checkpoints and all are damaged. It names a file of the newest.
    """
    first: CheckpointError | None = None
    for path in _newest_first(folder):
        try:
            verify(path, ranks=ranks)
        except CheckpointError as error:
            first = first or error
            continue
        if first is not None:
            say(f"{str(first).removesuffix(' ' + ANEW)} An older checkpoint is whole and is taken: {path.name}")
        return path
    if first is not None:
        raise first
    return None


def _newest_first(folder: Path) -> list[Path]:
    steps = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / COMPLETE).exists()
    }
    return [steps[step] for step in sorted(steps, reverse=True)]


def _files(folder: Path) -> dict[str, Path]:
    """Every file below `folder` but complete.json, by its path in there."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / COMPLETE]
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
