"""Compute the leak of a task against what each earlier task protected, from the files of the versions alone.

At the budget, S loses old directions. The leak against S before the task does not show this; the leak against S as it
was after each earlier task does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from gorp.storage import read_tensors, tensor_names
from gorp.weights.delta import WeightDelta, leak, unpack_deltas
from gorp.workspace.state import DELTA, MEMORY
from gorp.workspace.store import Version


def earlier_leaks(lineage: Sequence[Version], folder: Path) -> dict[str, Mapping[str, float]]:
    """Return ‖ΔW Sⱼ‖ / ‖ΔW‖ of one task's change ΔW for each earlier task j, with Sⱼ as it was after task j.

    Reads one weight at a time, so that no second model and no second memory is held.

    Args:
        lineage: The versions from v0 to the one that the task started from.
        folder: Folder with the `delta.safetensors` of the task.

    Returns:
        Earlier task -> the number of `weights` compared, the `worst` and the `median` leak over them.
    """
    earlier = [version for version in lineage if version.record["task"] and (version.folder / MEMORY).is_file()]
    names = {version.name: set(tensor_names(version.folder / MEMORY)) for version in earlier}
    found: dict[str, list[float]] = {version.name: [] for version in earlier}
    for name in _weights(folder / DELTA):
        change, before = _delta(folder / DELTA, name), _delta(lineage[-1].folder / DELTA, name)
        assert change is not None
        change = change if before is None else change.since(before)
        for version in earlier:
            if name in names[version.name]:
                basis = read_tensors(version.folder / MEMORY, only={name})[0][name]
                found[version.name].append(leak(change, basis))
    return {
        version.record["task"]: {"weights": len(leaks), "worst": max(leaks), "median": median(leaks)}
        for version in earlier
        if (leaks := found[version.name])
    }


def _weights(path: Path) -> list[str]:
    return sorted({key.removesuffix("::left").removesuffix("::right") for key in tensor_names(path)})


def _delta(path: Path, name: str) -> WeightDelta | None:
    """Return the delta of one weight; None if the file (as for v0) or the weight in it is missing."""
    keys = {name, f"{name}::left", f"{name}::right"}
    return unpack_deltas(read_tensors(path, only=keys)[0]).get(name) if path.is_file() else None
