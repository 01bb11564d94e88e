"""Compute the leak of a task, of an export, or between two versions, against what each earlier task protected.

At the budget, S loses old directions. The leak against S before the task does not show this; the leak against S as it
was after each earlier task does.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from torch import Tensor

from gorp.storage import read_tensors, tensor_names
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta, leak, unpack_deltas
from gorp.workspace.state import DELTA, MEMORY
from gorp.workspace.store import Version


Measure = Callable[[Version, Tensor], float]
"""Returns the leak of one weight against the basis S that a version protects."""


def earlier_leaks(lineage: Sequence[Version], folder: Path) -> dict[str, Mapping[str, float]]:
    """Return ‖ΔW Sⱼ‖ / ‖ΔW‖ of one task's change ΔW for each earlier task j, with Sⱼ as it was after task j.

    Reads one weight at a time, so that no second model and no second memory is held.

    Args:
        lineage: The versions from v0 to the one that the task started from.
        folder: Folder with the `delta.safetensors` of the task.

    Returns:
        Earlier task -> the number of `weights` compared, the `worst` and the `median` leak over them.
    """

    def measure(name: str) -> Measure:
        change, before = delta_of(folder / DELTA, name), delta_of(lineage[-1].folder / DELTA, name)
        assert change is not None
        change = change if before is None else change.since(before)
        return lambda version, basis: leak(change, basis)

    return _over_earlier(lineage, weights_of(folder / DELTA), measure)


def leaks_between(lineage: Sequence[Version], new: Version) -> dict[str, Mapping[str, float]]:
    """Return ‖ΔW Sⱼ‖ / ‖ΔW‖ of the difference of two versions for each task j that the old one had learned.

        ΔW = delta of the new version - delta of the old one        Sⱼ: as task j left it

    If the new version was trained from the old one, these are the `leak_earlier` of its record.

    Args:
        lineage: The versions from v0 to the old one.
        new: The new version; it need not be trained from the old one.
    """
    new.check_files(DELTA)
    paths = [version.folder / DELTA for version in (lineage[-1], new)]
    names = sorted({name for path in paths if path.is_file() for name in weights_of(path)})

    def measure(name: str) -> Measure:
        before, after = (delta_of(path, name) for path in paths)
        shape = next(delta.shape for delta in (before, after) if delta is not None)
        change = (after or WeightDelta(shape)).minus(before or WeightDelta(shape))
        return lambda version, basis: leak(change, basis)

    return _over_earlier(lineage, names, measure)


def served_leaks(
    lineage: Sequence[Version], weights: BaseWeights, deltas: Mapping[str, WeightDelta]
) -> dict[str, Mapping[str, float]]:
    """Return ‖D Sⱼ‖ / ‖D‖ for each earlier task j, D being what all later tasks changed in the served weights.

        D = round(W₀ + delta) - round(W₀ + deltaⱼ)        deltaⱼ, Sⱼ: as task j left them

    Rounding is to the dtype that the parameters have now, so the leak is that of the model as it is exported.

    Args:
        lineage: The versions from v0 to the parent of the exported one.
        weights: W₀ of the model.
        deltas: Those of the exported version.
    """

    def measure(name: str) -> Measure:
        def of(version: Version, basis: Tensor) -> float:
            before = delta_of(version.folder / DELTA, name) or WeightDelta(deltas[name].shape)
            return weights.served_leak(name, before, deltas[name], basis.to(weights.parameter(name).device))

        return of

    return _over_earlier(lineage, deltas, measure)


def adapter_leaks(
    lineage: Sequence[Version], pairs: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Mapping[str, float]]:
    """Return the same for an adapter beside W₀, where nothing is rounded to W₀'s grid: D = B A - deltaⱼ.

    Args:
        lineage: The versions from v0 to the parent of the exported one.
        pairs: Name of a weight -> B (m x r) and A (r x n).
    """

    def measure(name: str) -> Measure:
        up, down = (part.float() for part in pairs[name])

        def of(version: Version, basis: Tensor) -> float:
            change, before = WeightDelta.of_factors(up, down.mT), delta_of(version.folder / DELTA, name)
            change = change if before is None else change.minus(before)
            return leak(change, basis)

        return of

    return _over_earlier(lineage, pairs, measure)


def _over_earlier(
    lineage: Sequence[Version], names: Iterable[str], measure: Callable[[str], Measure]
) -> dict[str, Mapping[str, float]]:
    """Return for each task of `lineage` the number of weights, and the worst and median leak over them.

    Raises:
        CheckpointError: If a file of a version is missing or damaged.
    """
    for version in lineage:
        version.check_files(DELTA, MEMORY)
    earlier = [version for version in lineage if version.record["task"] and MEMORY in version.record["sha256"]]
    protected = {version.name: set(tensor_names(version.folder / MEMORY)) for version in earlier}
    found: dict[str, list[float]] = {version.name: [] for version in earlier}
    for name in names:
        of = measure(name)
        for version in earlier:
            if name in protected[version.name]:
                basis = read_tensors(version.folder / MEMORY, only={name})[0][name]
                found[version.name].append(of(version, basis))
    return {
        version.record["task"]: {"weights": len(leaks), "worst": max(leaks), "median": median(leaks)}
        for version in earlier
        if (leaks := found[version.name])
    }


def weights_of(path: Path) -> list[str]:
    """Return the names of the weights in a delta.safetensors, sorted."""
    return sorted({key.removesuffix("::left").removesuffix("::right") for key in tensor_names(path)})


def delta_of(path: Path, name: str) -> WeightDelta | None:
    """Return the delta of one weight; None if the file (as for v0) or the weight in it is missing."""
    keys = {name, f"{name}::left", f"{name}::right"}
    return unpack_deltas(read_tensors(path, only=keys)[0]).get(name) if path.is_file() else None
