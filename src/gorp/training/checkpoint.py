"""What a task in progress leaves on disk, beside the Trainer's own optimizer, scheduler and random states.

checkpoint-N/trainable.safetensors   every parameter that is being trained, by its name in the wrapped model
checkpoint-N/method.safetensors      the method's state: frames, folds, sketches, what it carries between tasks
checkpoint-N/complete.json           written last; a folder without it was interrupted and is never read
"""

import re
from pathlib import Path

import torch
from torch import nn

from gorp.errors import CheckpointError
from gorp.method import Method
from gorp.storage import read_tensors, write_json, write_tensors


COMPLETE = "complete.json"


def save_checkpoint(folder: Path, model: nn.Module, method: Method) -> None:
    """Write the trainable weights and the method's state, exactly as they are."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    write_tensors(folder / "trainable.safetensors", trainable, {"method": method.name})
    write_tensors(folder / "method.safetensors", method.state_dict(), {"method": method.name})


def mark_complete(folder: Path) -> None:
    """Say that every file of `folder` is whole."""
    write_json(folder / COMPLETE, {"complete": True})


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
    """The checkpoint with the most steps among those that are whole, or None."""
    steps = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / COMPLETE).exists()
    }
    return steps[max(steps)] if steps else None
