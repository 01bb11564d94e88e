"""Sequential full fine-tuning: every weight, one task after another, no protection. The classic lower bound.

W ← W - η · Adam(dL/dW)    for every parameter, in float32

A model in bfloat16 or float16 is widened to float32 while it trains (`gorp.layers.widening`). The forward pass of a
bfloat16 model runs under autocast (`widens`), so products cost what they did. At the task's end W is
round(W₀ + delta), as everywhere.
"""

from typing import Any, final

from torch import nn
from torch.optim import Optimizer
from transformers.trainer_pt_utils import get_parameter_names
from typing_extensions import override

from gorp.layers.widening import Widened
from gorp.methods.base import Method, MethodConfig, TaskContext


NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Names that Hugging Face's Trainer leaves out of weight decay, beside those of every `nn.LayerNorm`."""


@final
class SequentialFull(Method):
    """Train all parameters; the delta is what they moved."""

    name = "sequential_full"
    title = "full fine-tuning, task after task"
    paper = "the usual practice"
    widens = True

    def __init__(self, config: MethodConfig | None = None) -> None:
        super().__init__(config)
        # While a task runs:
        self._widened = Widened()
        self._trained: dict[str, nn.Parameter] = {}

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        for name, _ in model.named_parameters():
            self.weights.base(name)
        self._widened = Widened(model.parameters())
        super().begin_task(model, task)
        model.requires_grad_(True)
        self._trained = dict(model.named_parameters())

    @override
    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """Norms and biases are a group of their own, without weight decay, as in Hugging Face's Trainer."""
        decayed = set(get_parameter_names(model, [nn.LayerNorm], NOT_DECAYED))
        groups = [
            {"params": [p for name, p in self._trained.items() if name in decayed]},
            {"params": [p for name, p in self._trained.items() if name not in decayed], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    @override
    def end_task(self, model: nn.Module, optimizer: Optimizer, task: TaskContext) -> None:
        self.deltas = {name: self.weights.difference(name) for name in self._trained}
        self._narrow(model)
        self.weights.load(self.deltas)

    @override
    def abandon(self, model: nn.Module) -> None:
        self._narrow(model)
        super().abandon(model)

    def _narrow(self, model: nn.Module) -> None:
        """Give every parameter its own dtype again; the weights themselves are loaded next."""
        model.requires_grad_(False)
        self._widened.narrow()
        self._trained = {}
