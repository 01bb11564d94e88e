"""What is reported of a finished task: what its change did to protected inputs, what S holds, and what S gave up."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from statistics import median
from typing import Any

import torch
from torch import Tensor

from gorp.core.memory import SubspaceMemory
from gorp.errors import ConfigError


SERVED = 1e-3
"""Where the trained change has none, a leak of the served weights above this is said: it is rounding, and large."""


class TaskReport:
    """The leak of one task, weight by weight, of the trained change and of the served one."""

    def __init__(self) -> None:
        self.leak: dict[str, float] = {}
        """‖ΔW S‖ / ‖ΔW‖ of the trained change, S as the task found it, for each weight that S protected in it."""
        self.served: dict[str, float] = {}
        """The same of the change of the working weight, round(W₀ + delta)."""

    def facts(self, memory: SubspaceMemory, trained: Sequence[str]) -> dict[str, Any]:
        """The leak, what S holds and what it gave up, as JSON values: over all weights, and in `weights` of each.

        Args:
            memory: S after the task.
            trained: Names of the trained weights.
        """
        everything = {*memory, *self.leak}
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
            "weights": {name: self._of(memory, name) for name in sorted(everything)},
        }

    def warnings(self, memory: SubspaceMemory, dtypes: Iterable[str]) -> list[str]:
        """What the task at hand did that the promise ΔW S = 0 does not cover, in sentences."""
        lines = []
        for lost, whose, effect in (
            (memory.released, "earlier tasks made", "inputs along them are no longer protected"),
            (memory.left_out, "this task found no", "later tasks may change what it answers along them"),
        ):
            if lost:
                count, energy = _totals(lost)
                lines.append(
                    f"the budget is reached: {count} directions of {whose} room in {len(lost)} of {len(memory)} "
                    f"weights (energy {energy:.3g}), and {effect}"
                )
        worst = max(self.served.values(), default=0.0)
        if worst > SERVED:
            lines.append(
                f"rounding to {' and '.join(sorted(set(dtypes)))}: of the weights that are served, up to "
                f"{100 * worst:.2g} % of the task's change acts on protected inputs "
                f"(of the trained change {max(self.leak.values()):.0e})"
            )
        return lines

    def _of(self, memory: SubspaceMemory, name: str) -> dict[str, Any]:
        nothing = torch.zeros(0)
        released, left_out = memory.released.get(name, nothing), memory.left_out.get(name, nothing)
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


def check_room(stuck: Sequence[str], trained: Sequence[str]) -> None:
    """Refuse a task that could change nothing.

    Args:
        stuck: The weights that cannot change any more.
        trained: All that a task trains.

    Raises:
        ConfigError: If they are the same.
    """
    if trained and len(stuck) == len(trained):
        raise ConfigError(
            f"S is the whole space for every trained weight ({len(trained)} of them), so that another task "
            "could change nothing. With a lower method.budget, below 1, the weakest directions of earlier tasks "
            "make room, and inputs along them are no longer protected."
        )


def full_and_nearly_full(memory: SubspaceMemory, stuck: Sequence[str], trained: int, finished: int) -> list[str]:
    """What will happen in the next task where S has no room, in sentences.

    Args:
        memory: S as it is.
        stuck: Weights that cannot change any more.
        trained: How many weights are trained.
        finished: Tasks that S has seen: what it holds, divided by them, is what a task brings on average.
    """
    lines = []
    if stuck:
        lines.append(
            f"S is the whole space for {len(stuck)} of {trained} weights, and a task can change nothing there: "
            f"{_some(stuck)}"
        )
    near = [] if finished < 1 else [name for name in memory if _short_of_room(memory, name, finished)]
    whole = [name for name in near if memory.cap(name) == memory.dimension(name)]
    capped = [name for name in near if name not in whole]
    if capped:
        fullest = max(capped, key=lambda name: memory.size(name) / memory.cap(name))
        lines.append(
            f"the budget may be reached in the next task in {len(capped)} of {len(memory)} weights (the fullest holds "
            f"{memory.size(fullest)} directions of {memory.cap(fullest)}): the weakest directions of earlier tasks "
            "then make room and are no longer protected; a larger method.budget, up to 1, keeps them"
        )
    if whole:
        lines.append(
            f"S may become the whole space in the next task for {len(whole)} of {len(memory)} weights, which then can "
            "learn nothing more; a method.budget below 1 lets the weakest directions make room instead"
        )
    return lines


def _short_of_room(memory: SubspaceMemory, name: str, finished: int) -> bool:
    size = memory.size(name)
    return not memory.is_full(name) and size + max(1, ceil(size / finished)) > memory.cap(name)


def _unmeasured(memory: SubspaceMemory, trained: Sequence[str]) -> str | None:
    """Why some weights have no leak, after a task that left S for the others."""
    elsewhere = [name for name in trained if name not in memory and {f"{name}::core", f"{name}::rank"} & {*memory}]
    if not elsewhere:
        return None
    return (
        f"{len(elsewhere)} of {len(trained)} weights have no leak: in paper mode what is held for them are coordinates "
        "of the core or of A's rows, which mean other directions of the weight in every frame, and no inputs of it"
    )


def _worst_and_median(key: str, values: Mapping[str, float]) -> dict[str, float | None]:
    found = list(values.values())
    return {key: max(found, default=None), f"{key}_median": median(found) if found else None}


def _capacities(key: str, memory: SubspaceMemory, names: Sequence[str]) -> dict[str, float | None]:
    shares = [memory.capacity(name) for name in names]
    return {f"{key}_mean": sum(shares) / len(shares) if shares else None, f"{key}_max": max(shares, default=None)}


def _totals(lost: Mapping[str, Tensor]) -> tuple[int, float]:
    """How many directions, and their energy in all."""
    return sum(map(len, lost.values())), sum(energies.sum().item() for energies in lost.values())


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
