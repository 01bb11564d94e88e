"""Sequential full fine-tuning: train every weight on one task after another, with no protection.

W ← W - η · Adam(dL/dW)    for every parameter, in float32

A model in bfloat16 or float16 is converted to float32 while it trains (`gorp.layers.widening`). The forward pass of a
bfloat16 model runs under autocast (`widens`), so its products still run in bfloat16. At the task's end W is
round(W₀ + delta), as for every method.
"""

from typing import Any, final

from torch import nn
from torch.optim import Optimizer
from transformers.trainer_pt_utils import get_parameter_names
from typing_extensions import override

from gorp.layers.widening import Widened
from gorp.methods.base import Method, MethodConfig, TaskContext


NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Patterns of parameter names without weight decay in Hugging Face's Trainer, besides those of each `nn.LayerNorm`."""


@final
class SequentialFull(Method):
    """Trains all parameters; the delta of each is its difference to the base model."""

    name = "sequential_full"
    title = "full fine-tuning of all weights on one task after another"
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
        """Return two groups: norms and biases without weight decay, as in Hugging Face's Trainer, and the rest."""
        decayed = set(get_parameter_names(model, [nn.LayerNorm], NOT_DECAYED))
        groups = [
            {"params": [p for name, p in self._trained.items() if name in decayed]},
            {"params": [p for name, p in self._trained.items() if name not in decayed], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    @override
    def end_task(self, model: nn.Module, optimizer: Optimizer, task: TaskContext) -> None:
        self.deltas = {name: self.weights.difference(name) for name in self._trained}
        self._restore_dtypes(model)
        self.weights.load(self.deltas)

    @override
    def abandon(self, model: nn.Module) -> None:
        self._restore_dtypes(model)
        super().abandon(model)

    def _restore_dtypes(self, model: nn.Module) -> None:
        """Convert every parameter back to its own dtype; the caller then loads the weights."""
        model.requires_grad_(False)
        self._widened.narrow()
        self._trained = {}
