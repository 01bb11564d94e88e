"""The protected subspace S as a method stores it: bases, input summaries of the tasks, and the report on the last task.

A method extends S at the end of each task, from the task's inputs (`grow`) or by its own rule (`memory.extend`), and
keeps all changes of later tasks orthogonal to S. After an error, `abandon` restores the state at the start of the task.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gorp.core.memory import SubspaceMemory
from gorp.core.state import prefixed, without_prefix
from gorp.layers.inputs import Batches, Reading, weight_inputs
from gorp.protection.coverage import Coverage
from gorp.protection.report import TaskReport, full_and_nearly_full
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta, leak


class SharedSpace:
    """S of each protected weight, n x s.

    Args:
        budget: Largest share of a weight's input dimensions that may be protected, in (0, 1].
        energy: ε, for methods that extend S by `memory.extend`; see `SubspaceMemory`.
    """

    def __init__(self, *, budget: float, energy: float = 0.0) -> None:
        self.memory = SubspaceMemory(energy=energy, budget=budget)
        self.coverage = Coverage()
        self.report = TaskReport()
        """Report on the last finished task."""
        # Memory, coverage and report at the start of the running task:
        self._before: tuple[dict[str, Tensor], dict[str, Tensor], TaskReport] | None = None

    def begin_task(self) -> None:
        """Save the state for `abandon`, and start a new report."""
        self._before = self.memory.state_dict(), self.coverage.state_dict(), self.report
        self.memory.begin_task()
        self.report = TaskReport()

    def end_task(self) -> None:
        """Accept the task's changes; `abandon` no longer has an effect."""
        self._before = None

    def abandon(self) -> None:
        """Restore the state at the start of the running task."""
        if self._before is not None:
            memory, coverage, self.report = self._before
            self.memory.load_state_dict(memory)
            self.coverage.load_state_dict(coverage)
        self._before = None

    def record_change(
        self, name: str, change: WeightDelta, *, weights: BaseWeights, before: WeightDelta, after: WeightDelta
    ) -> None:
        """Record the task's change of one weight: its leak, and its effect on outputs of earlier tasks.

        Args:
            name: Name of the weight.
            change: ΔW of the task, as trained.
            weights: The base weights.
            before: Delta of the weight at the start of the task.
            after: Delta of the weight including `change`.
        """
        self.coverage.add_change(name, change)
        if self.memory.size(name):
            parameter = weights.parameter(name)
            wide = torch.promote_types(parameter.dtype, torch.float32)
            basis = self.memory.basis(name, parameter, dtype=wide)
            self.report.leak[name] = leak(change, basis)
            self.report.served[name] = weights.served_leak(name, before, after, basis)

    def grow(
        self,
        model: nn.Module,
        names: Sequence[str],
        task: str,
        batches: Batches,
        *,
        rows: int,
        threshold: float,
        reading: Reading = lambda done, total: None,
    ) -> None:
        """Extend S of the named weights by the inputs of a finished task.

        Args:
            model: The model with its served weights after the task.
            names: Names of the weights that the task could change.
            task: Name of the task.
            batches: `TaskContext.batches` of the task.
            rows: Number of its rows to read.
            threshold: τ of `gorp.core.linalg.extend_basis_above`.
            reading: `TaskContext.reading` of the task.
        """
        for readers, inputs in weight_inputs(model, names, batches, rows=rows, reading=reading):
            self.memory.extend_above(readers, inputs.total, threshold=threshold)
            for name in readers:
                basis, weight = self.memory.basis(name, inputs.total), model.get_parameter(name)
                self.coverage.add_task(task, name, inputs, basis=basis, weight=weight)
        self.coverage.release(self.memory.released, newest=task)

    def protect(self, directions: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Make given directions the S of weights that have none; no inputs are read, so there is no coverage.

        Args:
            directions: Name of a weight -> orthonormal columns, n x p, and their energies (`SubspaceMemory.protect`).
        """
        for name, (columns, energies) in directions.items():
            self.memory.protect(name, columns, energies)

    def assume(self, directions: Mapping[str, tuple[int, int]], *, read: Mapping[str, torch.Size], tasks: int) -> None:
        """Hold S and input summaries of these sizes, in tensors without data (the meta device).

        Args:
            directions: Of each basis: its dimension n and its columns s.
            read: Shapes of the weights whose inputs each task leaves a summary of.
            tasks: Finished tasks.
        """
        bases = {name: torch.empty(n, s, device="meta") for name, (n, s) in directions.items()}
        energies = {f"{name}::energy": torch.empty(s, device="meta") for name, (_, s) in directions.items()}
        self.memory.load_state_dict(bases | energies)
        self.coverage.assume(read, tasks=tasks)

    def facts(self, trained: Sequence[str]) -> dict[str, Any]:
        """Return leak, capacity, and coverage and output change of all learned tasks, as JSON values.

        Args:
            trained: Names of the trained weights.
        """
        return self.report.facts(self.memory, trained) | {"earlier": self.coverage.facts()}

    def warnings(self, weights: BaseWeights) -> list[str]:
        """Return the warnings on the last task; see `TaskReport.warnings`."""
        dtypes = [str(weights.parameter(name).dtype).removeprefix("torch.") for name in self.report.served]
        return self.report.warnings(self.memory, dtypes)

    def next_task_warnings(self, full: Sequence[str], *, trained: int, finished: int) -> list[str]:
        """Return warnings on the next task; see `full_and_nearly_full`."""
        return full_and_nearly_full(self.memory, full, trained, finished)

    def bases(self) -> dict[str, Tensor]:
        """Return S by weight, for `Method.memory_tensors`."""
        return {name: value for name, value in self.memory.state_dict().items() if not name.endswith("::energy")}

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors under `memory/...` and `coverage/...`."""
        return prefixed("memory", self.memory.state_dict()) | prefixed("coverage", self.coverage.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a `state_dict`; other keys are ignored."""
        self.memory.load_state_dict(without_prefix("memory", state))
        self.coverage.load_state_dict(without_prefix("coverage", state))
