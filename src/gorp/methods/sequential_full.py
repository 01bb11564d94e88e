"""Sequential full fine-tuning: every weight, one task after another, no protection. The classic lower bound."""

from typing import final

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from gorp.method import Method, TaskContext


@final
class SequentialFull(Method):
    """Train all parameters in place; the delta is what they moved."""

    name = "sequential_full"
    title = "full fine-tuning, task after task"
    paper = "the usual practice"

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        super().begin_task(model, task)
        model.requires_grad_(True)
        self._trained: dict[str, Tensor] = dict(model.named_parameters())
        for name in self._trained:
            self.weights.base(name)

    @override
    def end_task(self, model: nn.Module, optimizer: Optimizer, task: TaskContext) -> None:
        self.deltas = {name: self.weights.difference(name) for name in self._trained}
        model.requires_grad_(False)
