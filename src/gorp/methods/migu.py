"""MIGU: train only the rows whose outputs have a large magnitude. Du et al. 2024, arXiv:2406.17245.

    aⱼ = Σ_tokens |yⱼ|                  for output j of a linear layer, over the tokens of one optimizer step
    G ← diag(a ≥ q-quantile of a) G     for A, a is that of A x (r numbers); for B, that of the layer's output (m)

from the second task on. Different tasks have different large outputs, so they train different rows. The paper divides
a by its sum, which does not change the order. Momentum and weight decay still move a row whose gradient is masked;
`masked: update` restores such rows after the step, so that they are bit for bit as before it.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from gorp.core.distributed import sum_over_ranks
from gorp.layers.lora import LoraSettings
from gorp.layers.names import layers_of
from gorp.layers.watch import ForwardWatch
from gorp.methods.base import MethodConfig, TaskContext
from gorp.methods.lora import LoraMethod
from gorp.ranges import BELOW_ONE, BETWEEN_TASKS


@dataclass(frozen=True, kw_only=True)
class MiguConfig(MethodConfig):
    """Options of MIGU."""

    quantile: Annotated[float, BELOW_ONE, BETWEEN_TASKS] = 0.7
    """q: share of the rows that are masked in a step. (Paper: 0.7.)"""
    masked: Literal["update", "gradient"] = "update"
    """What is masked in a row with small outputs: its whole update, or only its gradient (the paper), so that momentum
    and weight decay still move it."""


@final
class Migu(LoraMethod):
    """Masks the rows of both LoRA factors by the magnitude of their outputs."""

    name = "migu"
    title = "a new LoRA pair per task; only the rows with large outputs are trained"
    paper = "Du et al. 2024, arXiv:2406.17245"
    Config = MiguConfig

    def __init__(self, config: MiguConfig | None = None, lora: LoraSettings | None = None) -> None:
        super().__init__(config, lora)
        # While a task runs:
        self._watch: ForwardWatch | None = None
        self._magnitudes: dict[str, tuple[Tensor, Tensor]] = {}  # weight -> a of A x (r), a of the layer's output (m)
        self._frozen_rows: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # factor, mask of its rows, copy before step

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        super().begin_task(model, task)
        if task.index > 1:
            self._watch = ForwardWatch(model, layers_of(model, self.pairs), self._record)

    def _record(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add Σ |A x| and Σ |y| over the tokens of one forward pass; x is N x n, y is N x m."""
        if not torch.is_grad_enabled():  # not a training pass
            return
        with torch.no_grad():
            inner = x.to(self.pairs[name].down.dtype) @ self.pairs[name].down.mT  # (N, n) @ (n, r)
            new = inner.abs().sum(dim=0), y.abs().sum(dim=0, dtype=inner.dtype)
            old = self._magnitudes.get(name)
            self._magnitudes[name] = new if old is None else (old[0] + new[0], old[1] + new[1])

    @override
    def edit_gradients(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._frozen_rows = []
        for name, pair in self.pairs.items():
            for factor, magnitudes in zip((pair.down, pair.up), self._magnitudes.get(name, ()), strict=False):
                frozen = smallest(sum_over_ranks(magnitudes), self.config.quantile)
                if factor.grad is not None:
                    factor.grad[frozen] = 0.0
                if self.config.masked == "update":
                    self._frozen_rows.append((factor, frozen, factor.detach().clone()))
        self._magnitudes = {}

    @override
    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().after_step(model, optimizer)
        for factor, frozen, before in self._frozen_rows:
            factor.data[frozen] = before[frozen]
        self._frozen_rows = []

    @override
    def _remove_pairs(self, model: nn.Module) -> None:
        self._stop_watching()
        super()._remove_pairs(model)

    @override
    def abandon(self, model: nn.Module) -> None:
        self._stop_watching()
        super().abandon(model)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.remove()
        self._watch, self._magnitudes, self._frozen_rows = None, {}, []


def smallest(magnitudes: Tensor, quantile: float) -> Tensor:
    """Return a mask of the ⌊quantile·len⌋ smallest entries; since quantile < 1, at least one is not masked."""
    frozen = torch.zeros_like(magnitudes, dtype=torch.bool)
    frozen[magnitudes.argsort(stable=True)[: int(quantile * len(magnitudes))]] = True
    return frozen
