"""What differs between the weights of two versions, one weight at a time, from their files alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gorp.protection.row_space import row_space
from gorp.storage import read_tensors, tensor_names
from gorp.weights.delta import WeightDelta, leak
from gorp.workspace.base_files import BaseFiles
from gorp.workspace.leaks import delta_of, weights_of
from gorp.workspace.state import DELTA, MEMORY
from gorp.workspace.store import Version


def changed_weights(
    old: Version, new: Version, gained: Sequence[Version], base: BaseFiles
) -> dict[str, dict[str, Any]]:
    """Return what is known of every weight that either version changed, as JSON values; at most one matrix is built.

    Args:
        old: The earlier version; S is what it protects.
        new: The later version, which may be on another branch.
        gained: The versions after their common ancestor, up to `new`.
        base: The weights of the base model.

    Returns:
        Name of the weight -> its `shape`; `norm`, ‖ΔW‖ in the Frobenius norm; `weight_norm`, ‖W‖ before the change, and
        `relative`, their ratio (None without the base model); `directions`, the number of leading directions of the
        change, and `held`, the share of ‖ΔW‖² that they hold; `cosines` of the principal angles between them and S,
        descending; `leak`, ‖ΔW S‖ / ‖ΔW‖ (the last four None without S or a change); `capacity` of both versions;
        directions `released` and their `released_energy`.

    Raises:
        CheckpointError: If a file is missing, or was changed after it was written.
    """
    for version in (old, new):
        version.check_files(DELTA, MEMORY)
    names = sorted({name for version in (old, new) for name in _weights(version)})
    protected = set(tensor_names(old.folder / MEMORY)) if MEMORY in old.record["sha256"] else set()
    return {name: _facts(name, old, new, gained, base, name in protected) for name in names}


def _weights(version: Version) -> list[str]:
    return weights_of(version.folder / DELTA) if DELTA in version.record["sha256"] else []


def _facts(
    name: str, old: Version, new: Version, gained: Sequence[Version], base: BaseFiles, is_protected: bool
) -> dict[str, Any]:
    before, after = (delta_of(version.folder / DELTA, name) for version in (old, new))
    shape = next(delta.shape for delta in (before, after) if delta is not None)
    before, after = before or WeightDelta(shape), after or WeightDelta(shape)
    size = _norm_before(name, before, base)
    change = after.minus(before)
    norm = change.norm()
    facts: dict[str, Any] = {
        "shape": list(shape),
        "norm": norm,
        "weight_norm": size,
        "relative": norm / size if size else None,
        **dict.fromkeys(("directions", "held", "cosines", "leak")),
        "capacity": [_of_record(version, name).get("capacity") for version in (old, new)],
        "released": sum(_of_record(version, name).get("released", 0) for version in gained),
        "released_energy": math.fsum(_of_record(version, name).get("released_energy", 0.0) for version in gained),
    }
    if is_protected and norm > 0 and len(shape) == 2:
        basis = read_tensors(old.folder / MEMORY, only={name})[0][name]
        space = row_space(change)
        facts |= {
            "directions": len(space.sigma),
            "held": space.held,
            "cosines": space.cosines(basis).tolist(),
            "leak": leak(change, basis),
        }
    return facts


def _norm_before(name: str, before: WeightDelta, base: BaseFiles) -> float | None:
    """Return ‖W₀ + delta‖; None if W₀ is not known."""
    weight = base.weight(name, before.shape)
    if weight is None:
        return None
    before.add_to(weight, slice(None))
    return weight.norm().item()


def _of_record(version: Version, name: str) -> Mapping[str, Any]:
    """Return what the version's record has on S of a weight."""
    return version.record.get("weights", {}).get(name, {})
