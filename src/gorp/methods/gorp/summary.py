"""What GORP keeps of a running task for S to grow by: a sketch of its gradients, or Adam's first moments at the end."""

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
    """One task's summary, weight by weight: rows of the weight's input space.

    Args:
        config: Says what is remembered: `memory_source`, `mode` and `adapter_side`.
        widths: n of each weight whose gradient is seen.
    """

    def __init__(self, config: GorpConfig, widths: Mapping[str, int]) -> None:
        self.config = config
        self._sketches = {name: FrequentDirections(min(config.sketch_size, n), n) for name, n in widths.items()}

    def feed(self, name: str, rows: Tensor) -> None:
        """Put rows of a weight's gradient into its sketch, where a sketch is what is remembered.

        Args:
            name: The weight.
            rows: Random combinations of the gradient's rows, from `gorp.core.frame.gradient_rows`.
        """
        if self.config.memory_source == "sketch":
            # Without asking, which would wait for the device: rows of a gradient that is not finite count as zero.
            self._sketches[name].insert(torch.where(torch.isfinite(rows).all(), rows, torch.zeros_like(rows)))

    def check(self, optimizer: torch.optim.Optimizer, *, has_cores: bool) -> None:
        """Refuse, at the first step rather than at the last, an optimizer that keeps nothing to remember.

        Raises:
            ConfigError: The task's end will ask for first moments, and the optimizer has none.
        """
        in_paper_mode = has_cores or self.config.adapter_side == "rank"
        if self.config.memory_source == "moment" or (self.config.mode == "paper" and in_paper_mode):
            first_moment(optimizer, next(p for group in optimizer.param_groups for p in group["params"]))

    def remember(
        self,
        memory: SubspaceMemory,
        name: str,
        optimizer: torch.optim.Optimizer,
        pair: LoraPair | None,
        layer: LowRankUpdate | None,
    ) -> None:
        """Let S of one weight grow by the energy rule.

        Args:
            memory: Where S is.
            name: The weight.
            optimizer: Of the task.
            pair: Its LoRA factors, if it has any.
            layer: Its full-rank branch, likewise.
        """
        paper, source = self.config.mode == "paper", self.config.memory_source
        if paper and layer is not None:  # S in the k x k coordinates, as published
            memory.extend(f"{name}::core", first_moment(optimizer, layer.core).mT)
        if paper and pair is not None and self.config.adapter_side == "rank":
            memory.extend(f"{name}::rank", first_moment(optimizer, pair.down).mT)
        elif source == "sketch":
            if not paper or pair is not None:
                memory.extend(name, self._sketches[name].rows)
        elif rows := self._moment_rows(optimizer, pair, layer):
            memory.extend(name, torch.cat(rows))

    def state_dict(self) -> dict[str, Tensor]:
        """The sketches by weight."""
        return {name: sketch.rows for name, sketch in self._sketches.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        for name, rows in state.items():
            self._sketches[name].load(rows)

    def _moment_rows(
        self, optimizer: torch.optim.Optimizer, pair: LoraPair | None, layer: LowRankUpdate | None
    ) -> list[Tensor]:
        """The first moments of a weight's branches as vectors of its input space, each branch of norm 1."""
        rows = [] if pair is None else [first_moment(optimizer, pair.down)]
        if layer is not None and self.config.mode == "strict":
            rows.append(first_moment(optimizer, layer.core) @ layer.right.mT)  # rows of U m Vᵀ, up to the isometry U
        return [r / r.norm().clamp(min=1e-30) for r in rows]


def first_moment(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor:
    """Adam's first moment, or the momentum buffer of an optimizer that has only that.

    Raises:
        ConfigError: The optimizer keeps neither.
    """
    found = moments.first_moment(optimizer, parameter)
    if found is not None:
        return found
    if not optimizer.state.get(parameter, {}) and parameter.grad is None:  # not used in this task: nothing to keep
        return torch.zeros_like(parameter)
    raise ConfigError(
        f"gorp remembers a task by the optimizer's first moment (method.memory_source: moment, and the cores in "
        f"paper mode), but {type(optimizer).__name__} keeps none. Use an optimizer with momentum, or strict mode "
        "with `memory_source: sketch`."
    )
