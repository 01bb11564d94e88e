"""A method whose state is no delta: an adapter for each task, and the base model where it knows none. Not shipped."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import final

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from gorp.core.state import prefixed, without_prefix
from gorp.layers.lora import LoraSettings
from gorp.methods.base import MethodConfig, TaskContext
from gorp.methods.lora import LoraMethod
from gorp.weights.delta import WeightDelta


@final
class PerTaskLora(LoraMethod):
    """W₀ x + s Bᵢ Aᵢ x for a question of task i."""

    name = "per_task_lora"
    title = "a LoRA adapter for each task"
    paper = "Hu et al. 2021, arXiv:2106.09685"
    keeps = "the adapter of every task"
    mergeable = False
    needs_task_id = True

    def __init__(self, config: MethodConfig | None = None, lora: LoraSettings | None = None) -> None:
        super().__init__(config, lora)
        self.learned: dict[str, dict[str, Tensor]] = {}
        """Task -> s B and A of each weight."""

    @override
    def end_task(self, model: nn.Module, optimizer: Optimizer, task: TaskContext) -> None:
        self.learned[task.name] = {}
        for name, pair in self.pairs.items():
            self.weights.base(name)
            self.learned[task.name][f"{name}::left"] = (pair.scale * pair.up.detach()).cpu().clone()
            self.learned[task.name][f"{name}::right"] = pair.down.detach().mT.cpu().clone()
        self._remove_pairs(model)

    @override
    @contextmanager
    def serving(self, model: nn.Module, task: str | None = None) -> Iterator[nn.Module]:
        with super().serving(model, task) as served:
            factors = self.learned.get(task or "", {})
            for name in {key.rpartition("::")[0] for key in factors}:
                left, right = factors[f"{name}::left"], factors[f"{name}::right"]
                delta = WeightDelta(self.weights.base(name).shape)
                delta.append(left, right)
                self.weights.set(name, [delta])
            try:
                yield served
            finally:
                self.weights.load(self.deltas)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        state = super().state_dict()
        for task, factors in self.learned.items():
            state |= prefixed(f"task/{task}", factors)
        return state

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        tasks = {key.split("/")[1] for key in state if key.startswith("task/")}
        self.learned = {task: without_prefix(f"task/{task}", state) for task in sorted(tasks)}
