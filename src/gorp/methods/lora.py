"""Base classes of the methods that train only LoRA pairs: a new pair for each task, or one pair for all tasks."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from gorp.core.state import prefixed, without_prefix
from gorp.errors import ConfigError
from gorp.layers.lora import LoraPair, LoraSettings, add_lora, remove_lora
from gorp.layers.names import weight_name
from gorp.layers.targets import left_out_line, resolve
from gorp.layers.trainable import check_rank
from gorp.methods.base import Method, MethodConfig, TaskContext
from gorp.weights.delta import WeightDelta


class LoraMethod(Method):
    """Trains a new LoRA pair for each task and merges it into the weights at the task's end.

    The layer computes W₀ x + Σᵢ s Bᵢ Aᵢ x; only the last pair is trainable.
    """

    uses_lora = True

    def __init__(self, config: MethodConfig | None = None, lora: LoraSettings | None = None) -> None:
        super().__init__(config)
        self.lora = lora or LoraSettings()
        self.pairs: dict[str, LoraPair] = {}
        """Name of a weight -> its trainable pair; empty between tasks."""

    @override
    def choose(self, model: nn.Module) -> list[str]:
        self.layers: list[str] = resolve(model, self.lora.targets, role="lora")
        if not self.layers:
            raise ConfigError(
                f"{self.name} has nothing to train: lora.target_modules is `none`. Set it to layer names or "
                "`all-linear`."
            )
        check_rank(model, self.layers, self.lora.r, "lora.r")
        return self.layers

    @override
    def notes(self, model: nn.Module) -> list[str]:
        return [line for line in [left_out_line(model, self.lora.targets)] if line]

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        super().begin_task(model, task)
        self.pairs = add_lora(model, self.layers, self.lora)

    @override
    def end_task(self, model: nn.Module, optimizer: Optimizer, task: TaskContext) -> None:
        for name, pair in self.pairs.items():
            self.deltas.setdefault(name, WeightDelta(self.weights.base(name).shape)).add(pair.delta().to("cpu"))
        self._remove_pairs(model)

    @override
    def abandon(self, model: nn.Module) -> None:
        remove_lora(model)
        self.pairs = {}
        super().abandon(model)

    @override
    def assume_learned(self, model: nn.Module, *, tasks: int, steps: int | None) -> None:
        shapes = {weight_name(layer): self.weights.parameter(weight_name(layer)).shape for layer in self.layers}
        self.deltas = {name: WeightDelta.without_data(shape, tasks * self.lora.r) for name, shape in shapes.items()}

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Inside this context the model computes what it computed before the task, for example as a teacher.

        The factors' tensors are swapped, not overwritten, so the backward pass of an earlier forward pass still works.
        """
        current = [(factor, factor.data) for pair in self.pairs.values() for factor in (pair.down, pair.up)]
        torch.clear_autocast_cache()  # it may hold a bfloat16 copy of a factor's previous value
        try:
            for name, pair in self.pairs.items():
                pair.down.data, pair.up.data = self._factors_before_task(name, pair)
            yield
        finally:
            for factor, data in current:
                factor.data = data
            torch.clear_autocast_cache()

    def _factors_before_task(self, name: str, pair: LoraPair) -> tuple[Tensor, Tensor]:
        """Return A and B with which the model computes what it did before the task: B = 0, so the pair adds nothing."""
        return pair.down.data, torch.zeros_like(pair.up.data)

    def _remove_pairs(self, model: nn.Module) -> None:
        """Remove the pairs from the model, and load the deltas, which now include them, into the weights."""
        remove_lora(model)
        self.pairs = {}
        self.weights.load(self.deltas)


class SharedLoraMethod(LoraMethod):
    """Trains one LoRA pair on all tasks: W₀ x + s B A x, with the same A and B from the first task to the last."""

    def __init__(self, config: MethodConfig | None = None, lora: LoraSettings | None = None) -> None:
        super().__init__(config, lora)
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        """Name of a weight -> A and B as the last task left them, in CPU memory."""

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        super().begin_task(model, task)
        self.weights.load({})  # W₀ only: the pair holds what earlier tasks added
        for name, factors in self.factors.items():
            self.pairs[name].load(*factors)

    @override
    def end_task(self, model: nn.Module, optimizer: Optimizer, task: TaskContext) -> None:
        for name, pair in self.pairs.items():
            self.weights.base(name)
            self.deltas[name] = pair.delta().to("cpu")
            self.factors[name] = (pair.down.detach().cpu().clone(), pair.up.detach().cpu().clone())
        self._remove_pairs(model)

    @override
    def assume_learned(self, model: nn.Module, *, tasks: int, steps: int | None) -> None:
        super().assume_learned(model, tasks=1, steps=steps)
        for name, delta in self.deltas.items():
            m, n = delta.shape
            factors = torch.empty(self.lora.r, n, device="meta"), torch.empty(m, self.lora.r, device="meta")
            self.factors[name] = factors

    @override
    def _factors_before_task(self, name: str, pair: LoraPair) -> tuple[Tensor, Tensor]:
        if name not in self.factors:
            return super()._factors_before_task(name, pair)
        down, up = self.factors[name]
        return down.to(pair.down), up.to(pair.up)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        downs = {name: down for name, (down, _) in self.factors.items()}
        ups = {name: up for name, (_, up) in self.factors.items()}
        return super().state_dict() | prefixed("down", downs) | prefixed("up", ups)

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        ups = without_prefix("up", state)
        self.factors = {name: (down, ups[name]) for name, down in without_prefix("down", state).items()}
