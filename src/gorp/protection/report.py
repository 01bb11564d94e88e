"""Report on a finished task (leak, capacity, released directions), and warnings before the next task."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, fsum
from statistics import median
from typing import Any

import torch
from torch import Tensor

from gorp.core.memory import SubspaceMemory
from gorp.errors import ConfigError


SERVED = 1e-3
"""Leak of the served weights above which a warning is given. The trained change has none, so it is due to rounding."""


class TaskReport:
    """Leak of one task, by weight, for the trained change and for the served change."""

    def __init__(self) -> None:
        self.leak: dict[str, float] = {}
        """‖ΔW S‖ / ‖ΔW‖ of the trained change, by weight; S at the start of the task, weights without S omitted."""
        self.served: dict[str, float] = {}
        """The same for the change of the served weight, round(W₀ + delta)."""

    def facts(self, memory: SubspaceMemory, trained: Sequence[str]) -> dict[str, Any]:
        """Return leak, capacity and released directions as JSON values: over all weights, and by weight in `weights`.

        Args:
            memory: S after the task.
            trained: Names of the trained weights.
        """
        names = {*memory, *self.leak}
        (released, released_energy), (left_out, left_out_energy) = map(_totals, (memory.released, memory.left_out))
        return {
            **_worst_and_median("leak", self.leak),
            **_worst_and_median("leak_served", self.served),
            "leak_unmeasured": _unmeasured(memory, trained),
            **_capacities("capacity", memory, [name for name in memory if "::" not in name]),
            **_capacities("core_capacity", memory, [name for name in memory if name.endswith("::core")]),
            **_capacities("rank_capacity", memory, [name for name in memory if name.endswith("::rank")]),
            "released": released,
            "released_energy": released_energy,
            "left_out": left_out,
            "left_out_energy": left_out_energy,
            "weights": {name: self._facts_of(memory, name) for name in sorted(names)},
        }

    def warnings(self, memory: SubspaceMemory, dtypes: Iterable[str]) -> list[str]:
        """Return messages on effects of the task that ΔW S = 0 does not exclude: released directions, rounding."""
        lines = []
        for lost, whose, effect in (
            (memory.released, "earlier tasks were released", "inputs along them are no longer protected"),
            (memory.left_out, "this task were not kept", "later tasks may change its outputs along them"),
        ):
            if lost:
                count, energy = _totals(lost)
                lines.append(
                    f"the budget is reached: {count} directions of {whose} in {len(lost)} of {len(memory)} "
                    f"weights (energy {energy:.3g}), and {effect}"
                )
        worst = max(self.served.values(), default=0.0)
        if worst > SERVED:
            lines.append(
                f"rounding to {' and '.join(sorted(set(dtypes)))}: up to {100 * worst:.2g} % of the change of the "
                f"served weights acts on protected inputs (leak of the trained change: {max(self.leak.values()):.0e})"
            )
        return lines

    def _facts_of(self, memory: SubspaceMemory, name: str) -> dict[str, Any]:
        empty = torch.zeros(0)
        released, left_out = memory.released.get(name, empty), memory.left_out.get(name, empty)
        return {
            "leak": self.leak.get(name),
            "leak_served": self.served.get(name),
            "capacity": memory.capacity(name) if name in memory else None,
            "directions": memory.size(name),
            "released": len(released),
            "released_energy": released.sum().item(),
            "left_out": len(left_out),
            "left_out_energy": left_out.sum().item(),
        }


def check_room(full: Sequence[str], trained: Sequence[str]) -> None:
    """Raise if no trained weight can change any more.

    Args:
        full: Names of the weights that cannot change, because S is their whole input space.
        trained: Names of all weights that a task trains.

    Raises:
        ConfigError: All trained weights are full.
    """
    if trained and len(full) == len(trained):
        raise ConfigError(
            f"S is the whole space for every trained weight ({len(trained)} of them), so another task cannot change "
            "anything. Set a lower method.budget, below 1: the weakest directions of earlier tasks are then released, "
            "and inputs along them are no longer protected."
        )


def full_and_nearly_full(memory: SubspaceMemory, full: Sequence[str], trained: int, finished: int) -> list[str]:
    """Return warnings on weights whose S is full or may become full in the next task.

    Args:
        memory: The current S.
        full: Names of the weights that cannot change, because S is their whole input space.
        trained: Number of trained weights.
        finished: Number of tasks that S protects. The size of S divided by it estimates what the next task will add.
    """
    lines = []
    if full:
        lines.append(
            f"S is the whole space for {len(full)} of {trained} weights, and a task can change nothing there: "
            f"{_first_names(sorted(full))}"
        )
    near = [] if finished < 1 else [name for name in memory if _short_of_room(memory, name, finished)]
    whole = [name for name in near if memory.cap(name) == memory.dimension(name)]
    capped = [name for name in near if name not in whole]
    if capped:
        fullest = max(sorted(capped), key=lambda name: memory.size(name) / memory.cap(name))
        lines.append(
            f"the budget may be reached in the next task in {len(capped)} of {len(memory)} weights (the fullest holds "
            f"{memory.size(fullest)} directions of {memory.cap(fullest)}): the weakest directions of earlier tasks are "
            "then released and no longer protected; a larger method.budget, up to 1, keeps them"
        )
    if whole:
        lines.append(
            f"S may become the whole space in the next task for {len(whole)} of {len(memory)} weights, which then "
            "cannot change any more; with a method.budget below 1, the weakest directions are released instead"
        )
    return lines


def _short_of_room(memory: SubspaceMemory, name: str, finished: int) -> bool:
    """Return whether an average task would exceed the budget of a weight that is not full yet."""
    size = memory.size(name)
    return not memory.is_full(name) and size + max(1, ceil(size / finished)) > memory.cap(name)


def _unmeasured(memory: SubspaceMemory, trained: Sequence[str]) -> str | None:
    """Return the reason why some weights have no leak; None if all trained weights have one."""
    other = [name for name in trained if name not in memory and {f"{name}::core", f"{name}::rank"} & {*memory}]
    if not other:
        return None
    return (
        f"{len(other)} of {len(trained)} weights have no leak: in paper mode their S has coordinates of the core or of "
        "A's rows, which stand for other directions of the weight in every frame, not for inputs of the weight"
    )


def _worst_and_median(key: str, values: Mapping[str, float]) -> dict[str, float | None]:
    leaks = list(values.values())
    return {key: max(leaks, default=None), f"{key}_median": median(leaks) if leaks else None}


def _capacities(key: str, memory: SubspaceMemory, names: Sequence[str]) -> dict[str, float | None]:
    shares = [memory.capacity(name) for name in names]
    return {f"{key}_mean": fsum(shares) / len(shares) if shares else None, f"{key}_max": max(shares, default=None)}


def _totals(lost: Mapping[str, Tensor]) -> tuple[int, float]:
    """Return the number of directions and their total energy."""
    return sum(map(len, lost.values())), fsum(energies.sum().item() for energies in lost.values())


def _first_names(names: Sequence[str]) -> str:
    first = ", ".join(names[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
