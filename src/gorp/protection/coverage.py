"""Coverage and output change of each learned task, computed without its rows.

For each task and weight, from the sums over the inputs X that were read when the task ended (`gorp.layers.inputs`):

    coverage       tr(Sᵀ M S) / tr(M)                             S right after the task; M = Xᵀ X, not centred
    output change  sqrt( Σ ‖ΔW Xᵀ‖² / Σ ‖W Xᵀ - mean‖² )          sums over weights; ΔW = W now - W when the task ended
                   ‖ΔW Xᵀ‖² is estimated by ‖Y‖², Y = Σ_u ΔW_u R over the later tasks u, R = Xᵀ Ω / √k
                   ‖W Xᵀ - mean‖² = tr(W (M - N μ μᵀ) Wᵀ)         W served when the task ended, μ = Σ x / N

After the task, S only grows, except that directions are released at the budget. The energy of a released direction is a
sum of the shares of all tasks along it, so it is at least the share of this task. Coverage minus the energies released
since is therefore a lower bound, and this bound is reported.

E ‖ΔW R‖² = ‖ΔW Xᵀ‖² holds exactly. For one weight, the relative standard deviation of the estimate is at most
sqrt(2 / k) = 1/2, if ΔW Xᵀ has rank 1, and smaller for higher ranks. Errors of different weights are independent and
mostly cancel in the sum. R is not projected: while S holds a direction, ΔW S = 0 removes it from Y, and once S has
released the direction, changes along it must count.

Stored for each task and weight are R and Y in bfloat16, 2·k·(n + m) bytes, and two numbers. A column of R is a sum of
all tokens with random signs, so it contains no single row of the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gorp.layers.inputs import PROJECTIONS, InputSums
from gorp.weights.delta import WeightDelta


ROUNDING = 1e-5
"""Share of ‖W Xᵀ‖² below which the centred outputs count as zero: float32 sums of equal outputs leave such a rest."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Input summary of one task at one weight, in main memory."""

    coverage: float
    """Lower bound of tr(Sᵀ M S) / tr(M) for the current S."""
    outputs: float
    """‖W Xᵀ - mean‖²; 0 if all outputs were equal."""
    projected: Tensor
    """R, n x k, bfloat16."""
    moved: Tensor
    """Y = ΔW R, m x k, bfloat16."""


def covered(basis: Tensor, moment: Tensor) -> float:
    """Return tr(Sᵀ M S) / tr(M), the share of the inputs' squared norm in span(S), in [0, 1]; 1 if M = 0.

    Args:
        basis: S, n x s.
        moment: M, n x n, of the same dtype.
    """
    total = moment.trace().item()
    inside = ((basis.mT @ moment) * basis.mT).sum().item()  # tr(Sᵀ M S): (s, n) @ (n, n)
    return min(max(inside / total, 0.0), 1.0) if total > 0 else 1.0


@torch.no_grad()
def centred_outputs(weight: Tensor, inputs: InputSums) -> float:
    """Return ‖W Xᵀ - mean‖² = tr(W (M - N μ μᵀ) Wᵀ), or 0 if the result is only rounding.

    Args:
        weight: W, m x n, on the device of the sums.
        inputs: Input sums of its layer.
    """
    w = weight.detach().to(inputs.total)
    mean = w @ inputs.first / inputs.count  # W μ: (m, n) @ (n,)
    square = ((w @ inputs.total) * w).sum().item()  # tr(W M Wᵀ): (m, n) @ (n, n)
    centred = square - inputs.count * mean.square().sum().item()
    return centred if centred > ROUNDING * square else 0.0


class Coverage:
    """Input summaries of all learned tasks: task -> weight -> `Reading`, in the order of learning."""

    def __init__(self) -> None:
        self._tasks: dict[str, dict[str, Reading]] = {}

    @torch.no_grad()
    def add_change(self, name: str, change: WeightDelta) -> None:
        """Add the change ΔW_u of weight `name` to the output change of every earlier task: Y ← Y + ΔW_u R."""
        for readings in self._tasks.values():
            if name in readings:
                old = readings[name]
                step = change.times(old.projected).cpu()  # (m, n) @ (n, k)
                readings[name] = replace(old, moved=(old.moved.to(step) + step).to(torch.bfloat16))

    def add_task(self, task: str, name: str, inputs: InputSums, *, basis: Tensor, weight: Tensor) -> None:
        """Store the input summary of a weight at the end of a task, replacing an earlier one of the same task name.

        Args:
            task: Name of the task.
            name: Name of the weight.
            inputs: Input sums of the weight's layer.
            basis: S after the task, n x s, in the dtype of the sums.
            weight: Served W after the task, m x n.
        """
        self._tasks.setdefault(task, {})[name] = Reading(
            coverage=covered(basis, inputs.total),
            outputs=centred_outputs(weight, inputs),
            projected=inputs.projected.to("cpu", torch.bfloat16),
            moved=torch.zeros(len(weight), PROJECTIONS, dtype=torch.bfloat16),
        )

    def assume(self, shapes: Mapping[str, torch.Size], *, tasks: int) -> None:
        """Hold what `tasks` tasks leave of weights of these shapes, in tensors without data (the meta device)."""
        for task in range(tasks):
            self._tasks[str(task)] = {
                name: Reading(
                    coverage=1.0,
                    outputs=0.0,
                    projected=torch.empty(n, PROJECTIONS, dtype=torch.bfloat16, device="meta"),
                    moved=torch.empty(m, PROJECTIONS, dtype=torch.bfloat16, device="meta"),
                )
                for name, (m, n) in shapes.items()
            }

    def release(self, energies: Mapping[str, Tensor], *, newest: str) -> None:
        """Lower the coverage of the earlier tasks by the energies of directions that S released in the newest task.

        Args:
            energies: Energies of the released directions, by weight.
            newest: Name of the newest task. Its own coverage was computed from S after the release.
        """
        for task, readings in self._tasks.items():
            for name in energies.keys() & readings.keys() if task != newest else ():
                bound = readings[name].coverage - energies[name].double().sum().item()
                readings[name] = replace(readings[name], coverage=max(bound, 0.0))

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return coverage and output change of each task, as JSON values.

        Returns:
            By task: `coverage`, the mean over weights, and `output_change`, over all weights together; each also for
            the worst weight, with its name. Shares, not percent. A value is None if no inputs were read, or if no
            outputs differed.
        """
        return {task: _facts_of(readings) for task, readings in self._tasks.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return `<index>::<task>::<weight>::` and `projected`, `moved` or `numbers` (coverage, outputs; float64)."""
        state = {}
        for index, (task, readings) in enumerate(self._tasks.items()):
            for name, reading in readings.items():
                key = f"{index}::{task}::{name}"
                state[f"{key}::projected"], state[f"{key}::moved"] = reading.projected, reading.moved
                state[f"{key}::numbers"] = torch.tensor([reading.coverage, reading.outputs], dtype=torch.float64)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a `state_dict`."""
        keys = [key.removesuffix("::numbers") for key in state if key.endswith("::numbers")]
        self._tasks = {}
        for key in sorted(keys, key=lambda key: int(key.partition("::")[0])):
            # The name of a task may contain `::`, that of a weight does not.
            task, _, name = key.partition("::")[2].rpartition("::")
            coverage, outputs = state[f"{key}::numbers"].tolist()
            self._tasks.setdefault(task, {})[name] = Reading(
                coverage=coverage,
                outputs=outputs,
                projected=state[f"{key}::projected"],
                moved=state[f"{key}::moved"],
            )


def _facts_of(readings: Mapping[str, Reading]) -> dict[str, Any]:
    """Return the facts of one task."""
    readings = dict(sorted(readings.items()))  # so that sums do not depend on the order in which weights were loaded
    coverages = {name: reading.coverage for name, reading in readings.items()}
    moved = {name: reading.moved.double().square().sum().item() for name, reading in readings.items()}
    outputs = {name: reading.outputs for name, reading in readings.items() if reading.outputs > 0}
    lowest = min(coverages, key=lambda name: coverages[name], default=None)
    changes = {name: (moved[name] / outputs[name]) ** 0.5 for name in outputs}
    highest = max(changes, key=lambda name: changes[name], default=None)
    return {
        "coverage": sum(coverages.values()) / len(coverages) if coverages else None,
        "coverage_worst": None if lowest is None else coverages[lowest],
        "coverage_worst_weight": lowest,
        "output_change": (sum(moved.values()) / sum(outputs.values())) ** 0.5 if outputs else None,
        "output_change_worst": None if highest is None else changes[highest],
        "output_change_worst_weight": highest,
    }
