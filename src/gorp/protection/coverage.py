"""How much of each earlier task S holds, and how far its outputs have moved since it ended, without any of its rows.

Of each task t and weight, from the sums over the inputs X that were read when the task ended (`gorp.layers.inputs`):

    coverage       tr(Sᵀ M S) / tr(M)                             S right after the task, M = Xᵀ X; uncentred
    output change  sqrt( Σ ‖ΔW Xᵀ‖² / Σ ‖W Xᵀ - mean‖² )          over weights; ΔW = W now - W when the task ended
                   ‖ΔW Xᵀ‖² is estimated by ‖Y‖², Y = Σ_u ΔW_u R over the later tasks u, R = Xᵀ Ω / √k
                   ‖W Xᵀ - mean‖² = tr(W (M - N μ μᵀ) Wᵀ)         W as served when the task ended, μ = Σ x / N

Later, S only grows, but for directions that make room at the budget. The energy of such a direction is the sum of
the shares that tasks have along it, and so at least this task's: coverage minus the energies released since is a lower
bound, and that is what is reported.

E ‖ΔW R‖² = ‖ΔW Xᵀ‖² holds exactly. For one weight the standard deviation of the estimate is at most sqrt(2 / k), half
its value, where ΔW Xᵀ has rank 1, and smaller the more directions it has. Errors of different weights are independent,
so that little is left of them in the sum. R keeps its part in S: ΔW S = 0 removes it while S holds it, and where S has
released a direction it has to count.

Kept are 2·k·(n + m) bytes, R and Y in bfloat16, and two numbers for each task and weight. A column of R is one sum of
all tokens under random signs, whatever their number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gorp.layers.inputs import PROJECTIONS, InputSums
from gorp.weights.delta import WeightDelta


ROUNDING = 1e-5
"""A share of ‖W Xᵀ‖² that the centred outputs must exceed; below it they are what float32 sums leave of equal ones."""


def reading_bytes(m: int, n: int) -> int:
    """What a task leaves of an m x n weight: R and Y in bfloat16, two float64."""
    return 2 * PROJECTIONS * (m + n) + 16


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is kept of one task at one weight, in main memory."""

    coverage: float
    """A lower bound of tr(Sᵀ M S) / tr(M), S as it is now."""
    outputs: float
    """‖W Xᵀ - mean‖²; 0 where the outputs did not differ."""
    projected: Tensor
    """R, n x k, bfloat16."""
    moved: Tensor
    """Y = ΔW R, m x k, bfloat16."""


def covered(basis: Tensor, moment: Tensor) -> float:
    """tr(Sᵀ M S) / tr(M): the share of the inputs' squared norm that lies in span(S), in [0, 1]; 1 of no inputs.

    Args:
        basis: S, n x s.
        moment: M, n x n, of the same dtype.
    """
    total = moment.trace().item()
    held = ((basis.mT @ moment) * basis.mT).sum().item()  # (s, n) @ (n, n)
    return min(max(held / total, 0.0), 1.0) if total > 0 else 1.0


@torch.no_grad()
def centred_outputs(weight: Tensor, inputs: InputSums) -> float:
    """‖W Xᵀ - mean‖² = tr(W (M - N μ μᵀ) Wᵀ); 0 where rounding is all that is left of it.

    Args:
        weight: W, m x n, on the device of the sums.
        inputs: Of its layer.
    """
    w = weight.detach().to(inputs.total)
    mean = w @ inputs.first / inputs.count  # W μ, m
    square = ((w @ inputs.total) * w).sum().item()  # tr(W M Wᵀ): (m, n) @ (n, n)
    centred = square - inputs.count * mean.square().sum().item()
    return centred if centred > ROUNDING * square else 0.0


class Coverage:
    """Readings of all tasks learned so far: task -> weight -> `Reading`, in the order of learning."""

    def __init__(self) -> None:
        self._tasks: dict[str, dict[str, Reading]] = {}

    @torch.no_grad()
    def move(self, name: str, change: WeightDelta) -> None:
        """Y ← Y + ΔW_u R of every earlier task: a task changed weight `name` by ΔW_u."""
        for readings in self._tasks.values():
            if name in readings:
                old = readings[name]
                step = change.times(old.projected).cpu()  # (m, n) @ (n, k)
                readings[name] = replace(old, moved=(old.moved.to(step) + step).to(torch.bfloat16))

    def enter(self, task: str, name: str, inputs: InputSums, *, basis: Tensor, weight: Tensor) -> None:
        """Take in what the inputs of a weight were at the end of a task. A task of the same name is replaced.

        Args:
            task: Its name.
            name: The weight's.
            inputs: Of the weight's layer.
            basis: S after the task, n x s, of the sums' dtype.
            weight: W after the task, m x n, as it is served.
        """
        self._tasks.setdefault(task, {})[name] = Reading(
            coverage=covered(basis, inputs.total),
            outputs=centred_outputs(weight, inputs),
            projected=inputs.projected.to("cpu", torch.bfloat16),
            moved=torch.zeros(len(weight), PROJECTIONS, dtype=torch.bfloat16),
        )

    def release(self, energies: Mapping[str, Tensor], *, newest: str) -> None:
        """Lower the bounds of the earlier tasks by the energies of directions that S gave up during the newest.

        Args:
            energies: By weight.
            newest: The task; its own coverage was taken from S after that.
        """
        for task, readings in self._tasks.items():
            for name in energies.keys() & readings.keys() if task != newest else ():
                least = readings[name].coverage - energies[name].double().sum().item()
                readings[name] = replace(readings[name], coverage=max(least, 0.0))

    def facts(self) -> dict[str, dict[str, Any]]:
        """By task, as JSON values.

        Returns:
            `coverage`, the mean over weights, and `output_change`, over all weights together, each also of the worst
            weight, with its name. Shares, not percent. None where nothing was read, or where no outputs differed.
        """
        return {task: _of(readings) for task, readings in self._tasks.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """`<place>::<task>::<weight>::` and `projected`, `moved` or `numbers` (coverage, outputs; float64)."""
        state = {}
        for place, (task, readings) in enumerate(self._tasks.items()):
            for name, reading in readings.items():
                key = f"{place}::{task}::{name}"
                state[f"{key}::projected"], state[f"{key}::moved"] = reading.projected, reading.moved
                state[f"{key}::numbers"] = torch.tensor([reading.coverage, reading.outputs], dtype=torch.float64)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        keys = [key.removesuffix("::numbers") for key in state if key.endswith("::numbers")]
        self._tasks = {}
        for key in sorted(keys, key=lambda key: int(key.partition("::")[0])):
            task, _, name = key.partition("::")[2].rpartition("::")  # the task's name may be anything
            coverage, outputs = state[f"{key}::numbers"].tolist()
            self._tasks.setdefault(task, {})[name] = Reading(
                coverage=coverage,
                outputs=outputs,
                projected=state[f"{key}::projected"],
                moved=state[f"{key}::moved"],
            )


def _of(readings: Mapping[str, Reading]) -> dict[str, Any]:
    """What is told of one task, the same in whatever order its weights were loaded."""
    readings = dict(sorted(readings.items()))
    held = {name: reading.coverage for name, reading in readings.items()}
    moved = {name: reading.moved.double().square().sum().item() for name, reading in readings.items()}
    outputs = {name: reading.outputs for name, reading in readings.items() if reading.outputs > 0}
    least = min(held, key=lambda name: held[name], default=None)
    changes = {name: (moved[name] / outputs[name]) ** 0.5 for name in outputs}
    most = max(changes, key=lambda name: changes[name], default=None)
    return {
        "coverage": sum(held.values()) / len(held) if held else None,
        "coverage_worst": None if least is None else held[least],
        "coverage_worst_weight": least,
        "output_change": (sum(moved.values()) / sum(outputs.values())) ** 0.5 if outputs else None,
        "output_change_worst": None if most is None else changes[most],
        "output_change_worst_weight": most,
    }
