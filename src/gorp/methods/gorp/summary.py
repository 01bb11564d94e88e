"""What S grows from if not from inputs: a sketch of a task's gradients, or the optimizer's first moments at its end."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gorp.core import moments
from gorp.core.memory import SubspaceMemory
from gorp.core.sketch import FrequentDirections
from gorp.errors import ConfigError
from gorp.layers.lora import LoraPair
from gorp.layers.low_rank import LowRankUpdate
from gorp.methods.gorp.config import GorpConfig


class TaskSummary:
    """Summarizes one task as vectors in the input space of each weight, and extends S by them.

    Args:
        config: Its `memory_source`, `mode` and `adapter_side` decide what is summarized.
        widths: n of each weight whose gradient is recorded.
    """

    def __init__(self, config: GorpConfig, widths: Mapping[str, int]) -> None:
        self.config = config
        self._sketches = {name: FrequentDirections(min(config.sketch_size, n), n) for name, n in widths.items()}

    def add_rows(self, name: str, rows: Tensor) -> None:
        """Add rows of a weight's gradient to its sketch, if S grows from sketches.

        Args:
            name: The weight.
            rows: Random combinations of the gradient's rows, from `gorp.core.sketched.gradient_rows`.
        """
        if self.config.memory_source == "sketch":
            # Rows of a gradient that is not finite count as zero. An `if` here would wait for the device.
            self._sketches[name].insert(torch.where(torch.isfinite(rows).all(), rows, torch.zeros_like(rows)))

    def check_optimizer(self, optimizer: torch.optim.Optimizer, *, has_cores: bool) -> None:
        """Raise in the first steps, not at the task's end, if the optimizer keeps no first moment and one is needed.

        Raises:
            ConfigError: If S will grow from first moments and the optimizer keeps none.
        """
        in_paper_mode = has_cores or self.config.adapter_side == "rank"
        if self.config.memory_source == "moment" or (self.config.mode == "paper" and in_paper_mode):
            first_moment(optimizer, next(p for group in optimizer.param_groups for p in group["params"]))

    def extend_memory(
        self,
        memory: SubspaceMemory,
        name: str,
        optimizer: torch.optim.Optimizer,
        pair: LoraPair | None,
        layer: LowRankUpdate | None,
    ) -> None:
        """Extend S of one weight by the energy rule.

        Args:
            memory: Holds S.
            name: The weight.
            optimizer: The task's optimizer.
            pair: The weight's LoRA pair, or None.
            layer: The weight's full-rank branch, or None.
        """
        paper, source = self.config.mode == "paper", self.config.memory_source
        if paper and layer is not None:  # S in the k coordinates of the core, as published
            memory.extend(f"{name}::core", first_moment(optimizer, layer.core).mT)
        if paper and pair is not None and self.config.adapter_side == "rank":
            memory.extend(f"{name}::rank", first_moment(optimizer, pair.down).mT)
        elif source == "sketch":
            if not paper or pair is not None:
                memory.extend(name, self._sketches[name].rows)
        elif rows := self._moment_rows(optimizer, pair, layer):
            memory.extend(name, torch.cat(rows))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the rows of each weight's sketch."""
        return {name: sketch.rows for name, sketch in self._sketches.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for name, rows in state.items():
            self._sketches[name].load(rows)

    def _moment_rows(
        self, optimizer: torch.optim.Optimizer, pair: LoraPair | None, layer: LowRankUpdate | None
    ) -> list[Tensor]:
        """Return the first moments of a weight's branches as rows of its input space, each branch scaled to norm 1."""
        rows = [] if pair is None else [first_moment(optimizer, pair.down)]
        if layer is not None and self.config.mode == "strict":
            # Rows of U M Vᵀ without U, whose orthonormal columns change neither the row space nor its energies.
            rows.append(first_moment(optimizer, layer.core) @ layer.right.mT)  # (k, k) @ (k, n)
        return [r / r.norm().clamp(min=1e-30) for r in rows]


def first_moment(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor:
    """Return Adam's first moment of a parameter, or the momentum buffer of an optimizer that has only that.

    Raises:
        ConfigError: If the optimizer keeps neither.
    """
    moment = moments.first_moment(optimizer, parameter)
    if moment is not None:
        return moment
    if not optimizer.state.get(parameter, {}) and parameter.grad is None:  # the task never used this parameter
        return torch.zeros_like(parameter)
    raise ConfigError(
        "gorp needs the optimizer's first moment at the end of a task (for method.memory_source: moment, and for the "
        f"cores in paper mode), but {type(optimizer).__name__} keeps none. Use an optimizer with momentum, or strict "
        "mode with `memory_source: sketch`."
    )
