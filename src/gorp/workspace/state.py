"""Write and read the state of a finished task: three safetensors files."""

from pathlib import Path
from typing import TYPE_CHECKING

import gorp
from gorp.errors import CheckpointError
from gorp.storage import read_tensors, write_tensors


if TYPE_CHECKING:  # so that `gorp status`, which reads no tensor, does not import torch
    from torch import Tensor

    from gorp.methods.base import Method


DELTA, MEMORY, METHOD = "delta.safetensors", "memory.safetensors", "method.safetensors"
SIDE = "input"
"""The side of a weight that the memory protects. For a weight m x n, S is n x s: it spans input directions."""


def write_state(folder: Path, method: "Method", base_sha256: str) -> None:
    """Write the state of `method` after a finished task into three safetensors files of `folder`.

    `state_dict` also holds the deltas and bases, under `delta/` and `memory/`. They are written only into
    delta.safetensors and memory.safetensors, so that the next task protects exactly what these two files hold.
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
    """Return the state that `write_state` wrote, as `Method.load_state_dict` takes it.

    Raises:
        CheckpointError: If the memory belongs to another model or to the other side of the weights.
    """
    from gorp.core.state import prefixed

    bases, header = read_tensors(folder / MEMORY)
    if header.get("side") != SIDE or header.get("base_sha256") != base_sha256:
        what = "another model" if header.get("side") == SIDE else f"the {header.get('side')} side of the weights"
        raise CheckpointError(
            f"{folder / MEMORY}: the protected subspace was computed for {what}; wanted the {SIDE} side of the base "
            f"model {base_sha256[:12]}…. Restore the file, or use the model it was computed for."
        )
    deltas, _ = read_tensors(folder / DELTA)
    rest, _ = read_tensors(folder / METHOD)
    return rest | prefixed("delta", deltas) | prefixed("memory", bases)
