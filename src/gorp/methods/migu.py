"""MIGU: only outputs of large magnitude are trained. Du et al. 2024, arXiv:2406.17245.

    aⱼ = Σ_tokens |yⱼ|                  of each linear layer, over the tokens of one optimizer step
    G ← diag(a ≥ q-quantile of a) G     the rows of A by A x, r numbers; the rows of B by the layer's outputs, m numbers

from the second task on. Different tasks have different large outputs, so their updates part. The paper divides a by its
sum, which alters no rank. Momentum and weight decay would go on moving a row whose gradient is masked; `masked: update`
puts such rows back after the step, so that they are bit for bit as before it.
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
    """q: share of the rows that stand still in a step. (Paper: 0.7.)"""
    masked: Literal["update", "gradient"] = "update"
    """What a row of small outputs loses: its whole step, or its gradient alone (the paper), so that momentum and weight
    decay still move it."""


@final
class Migu(LoraMethod):
    """Masks the rows of both factors by the magnitude of their outputs."""

    name = "migu"
    title = "a fresh LoRA pair per task, trained where a layer's outputs are large"
    paper = "Du et al. 2024, arXiv:2406.17245"
    Config = MiguConfig

    def __init__(self, config: MiguConfig | None = None, lora: LoraSettings | None = None) -> None:
        super().__init__(config, lora)
        # While a task runs:
        self._watch: ForwardWatch | None = None
        self._sizes: dict[str, tuple[Tensor, Tensor]] = {}  # a of A x and of the layer, by the weight's name
        self._still: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # factor, which rows stand still, the factor before

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        super().begin_task(model, task)
        if task.index > 1:
            self._watch = ForwardWatch(model, layers_of(model, self.pairs), self._see)

    def _see(self, name: str, x: Tensor, y: Tensor) -> None:
        if not torch.is_grad_enabled():  # nobody trains on it
            return
        with torch.no_grad():
            inner = x.to(self.pairs[name].down.dtype) @ self.pairs[name].down.mT  # (N, n) @ (n, r)
            new = inner.abs().sum(dim=0), y.abs().sum(dim=0, dtype=inner.dtype)
            old = self._sizes.get(name)
            self._sizes[name] = new if old is None else (old[0] + new[0], old[1] + new[1])

    @override
    def edit_gradients(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._still = []
        for name, pair in self.pairs.items():
            for factor, sizes in zip((pair.down, pair.up), self._sizes.get(name, ()), strict=False):
                still = small(sum_over_ranks(sizes), self.config.quantile)
                if factor.grad is not None:
                    factor.grad[still] = 0.0
                if self.config.masked == "update":
                    self._still.append((factor, still, factor.detach().clone()))
        self._sizes = {}

    @override
    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().after_step(model, optimizer)
        for factor, still, before in self._still:
            factor.data[still] = before[still]
        self._still = []

    @override
    def _finish(self, model: nn.Module) -> None:
        self._let_go()
        super()._finish(model)

    @override
    def abandon(self, model: nn.Module) -> None:
        self._let_go()
        super().abandon(model)

    def _let_go(self) -> None:
        if self._watch is not None:
            self._watch.remove()
        self._watch, self._sizes, self._still = None, {}, []


def small(sizes: Tensor, quantile: float) -> Tensor:
    """Which entries are among the smallest: ⌊q·len⌋ of them, so that one at least is not."""
    still = torch.zeros_like(sizes, dtype=torch.bool)
    still[sizes.argsort(stable=True)[: int(quantile * len(sizes))]] = True
    return still
