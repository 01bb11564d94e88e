"""What a finished task leaves, in three safetensors files, and how it is read back."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import gorp
from gorp.errors import CheckpointError
from gorp.storage import read_tensors, write_tensors


if TYPE_CHECKING:  # torch is imported with the first tensor, not by `gorp status`
    from torch import Tensor

    from gorp.methods.base import Method


DELTA, MEMORY, METHOD = "delta.safetensors", "memory.safetensors", "method.safetensors"
SIDE = "input"
"""Which side of a weight the memory protects: S has n rows for a weight of n inputs."""


def write_state(folder: Path, method: "Method", base_sha256: str) -> None:
    """Write what a finished task leaves into three safetensors files of `folder`.

    Deltas and bases are in the method's state too, under `delta/` and `memory/`, and are not written twice: what the
    two contract files say is what the next task protects.
    """
    from gorp.core.state import prefixed
    from gorp.weights.delta import pack_deltas

    options = {
        name: getattr(method.config, name, None) for name in ("mode", "memory_source", "energy", "threshold", "budget")
    }
    header = {**options, "side": SIDE, "base_sha256": base_sha256, "gorp_version": gorp.__version__}
    bases = method.memory_tensors()
    elsewhere = {*prefixed("delta", pack_deltas(method.deltas)), *prefixed("memory", bases)}
    rest = {key: value for key, value in method.state_dict().items() if key not in elsewhere}
    write_tensors(folder / DELTA, pack_deltas(method.deltas), {"base_sha256": base_sha256})
    write_tensors(folder / MEMORY, bases, header)
    write_tensors(folder / METHOD, rest, {"method": method.name})


def read_state(folder: Path, base_sha256: str) -> "dict[str, Tensor]":
    """The inverse of `write_state`: what `Method.load_state_dict` takes.

    Raises:
        CheckpointError: If the memory is another model's, or of the other side of the weights.
    """
    from gorp.core.state import prefixed

    bases, header = read_tensors(folder / MEMORY)
    if header.get("side") != SIDE or header.get("base_sha256") != base_sha256:
        what = "another model" if header.get("side") == SIDE else f"the {header.get('side')} side of the weights"
        raise CheckpointError(
            f"{folder / MEMORY}: the memory was made for {what}; wanted the {SIDE} side of the base model "
            f"{base_sha256[:12]}…. Restore the file, or use the model it was made with."
        )
    deltas, _ = read_tensors(folder / DELTA)
    rest, _ = read_tensors(folder / METHOD)
    return rest | prefixed("delta", deltas) | prefixed("memory", bases)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        CheckpointError: If it is missing.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file, but its version has one. Restore it from a copy.") from None
