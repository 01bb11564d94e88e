"""Elastic Weight Consolidation, online. Kirkpatrick et al. 2017, arXiv:1612.00796; Schwarz et al. 2018, 1805.06370.

    L(θ) = L_task(θ) + λ/2 Σᵢ Fᵢ (θᵢ - θ*ᵢ)²                                                    (eq. 3)
    Fᵢ   = E_(x, y) [ (∂ log p(y | x) / ∂θᵢ)² ]  at θ*, one example at a time, after the task
    F    ← γ F + F_t                                                                            (online EWC, eq. 9)

θ are the factors A and B of one LoRA pair per weight, shared by all tasks. F is the empirical Fisher information: y is
the example's own answer, not one drawn from the model. The examples are random rows of the task, divided among the
ranks. Each task's F is scaled to mean 1, so that λ has the same effect for every model, answer length and task.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from gorp.core.distributed import num_ranks, rank, sum_over_ranks
from gorp.core.outputs import Batch, Outputs
from gorp.core.state import prefixed, without_prefix
from gorp.layers.lora import LoraSettings
from gorp.methods.base import MethodConfig, TaskContext
from gorp.methods.lora import SharedLoraMethod
from gorp.ranges import BETWEEN_TASKS, COUNT, FRACTION, NOT_NEGATIVE


@dataclass(frozen=True, kw_only=True)
class EwcConfig(MethodConfig):
    """Options of EWC."""

    strength: Annotated[float, NOT_NEGATIVE, BETWEEN_TASKS] = 0.1
    """λ: weight of the penalty, for a Fisher information of mean 1. 0.1 was the best of 0.1, 1 and 100 on development
    rows."""
    decay: Annotated[float, FRACTION, BETWEEN_TASKS] = 1.0
    """γ: factor on the earlier tasks' Fisher information when a task is added."""
    fisher_examples: Annotated[int, COUNT, BETWEEN_TASKS] = 200
    """Number of training examples, drawn at random, from which the Fisher information is estimated."""


@final
class Ewc(SharedLoraMethod):
    """One LoRA adapter with a quadratic penalty around the last task's solution, weighted by Fisher information."""

    name = "ewc"
    title = "one LoRA adapter for all tasks, with a quadratic penalty weighted by the Fisher information"
    paper = "Kirkpatrick et al. 2017, arXiv:1612.00796"
    keeps = "F and θ*, each the size of the adapter; it does not grow"
    Config = EwcConfig
    loss_reads_batch = False

    def __init__(self, config: EwcConfig | None = None, lora: LoraSettings | None = None) -> None:
        super().__init__(config, lora)
        self.fisher: dict[str, Tensor] = {}
        """F of each factor, in CPU memory. θ* are the factors as the last task left them (`factors`)."""
        self._penalized: dict[str, tuple[Tensor, Tensor]] = {}  # F, θ* of each factor, on its device; empty in task 1

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        super().begin_task(model, task)
        self._penalized = {
            key: (self.fisher[key].to(p.device), p.detach().clone())  # θ*: the pair starts as the last task left it
            for key, p in self._parameters().items()
            if key in self.fisher
        }

    @override
    def extra_loss(self, model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor | None:
        if not self._penalized:
            return None
        now = self._parameters()
        terms = [(fisher * (now[key] - anchor).square()).sum() for key, (fisher, anchor) in self._penalized.items()]
        return 0.5 * self.config.strength * torch.stack(terms).sum()

    @override
    def end_task(self, model: nn.Module, optimizer: Optimizer, task: TaskContext) -> None:
        parameters = self._parameters()
        new = {key: torch.zeros_like(p) for key, p in parameters.items()}
        training = model.training
        model.eval()
        for number, example in enumerate(task.batches(1, self.config.fisher_examples)):
            if number % num_ranks() != rank():
                continue
            model.zero_grad()
            num_tokens = (example["labels"] != -100).sum()
            (model(**example).loss * num_tokens).backward()  # -log p(y | x); the model's loss is its mean over tokens
            for key, p in parameters.items():
                new[key] += p.grad.square() if p.grad is not None else 0.0
        model.zero_grad()
        model.train(training)
        new = {key: sum_over_ranks(f) for key, f in new.items()}
        mean = torch.stack([f.sum() for f in new.values()]).sum() / sum(f.numel() for f in new.values())
        for key, f in new.items():
            old = self.fisher.get(key, torch.zeros_like(f).cpu())
            self.fisher[key] = self.config.decay * old + (f / mean.clamp(min=1e-30)).cpu()
        self._penalized = {}
        super().end_task(model, optimizer, task)

    @override
    def assume_learned(self, model: nn.Module, *, tasks: int, steps: int | None) -> None:
        super().assume_learned(model, tasks=tasks, steps=steps)
        for name, (down, up) in self.factors.items():
            self.fisher |= {f"{name}::a": torch.empty_like(down), f"{name}::b": torch.empty_like(up)}

    @override
    def resident_tensors(self) -> list[Tensor]:
        return [tensor for pair in self._penalized.values() for tensor in pair]

    @override
    def abandon(self, model: nn.Module) -> None:
        self._penalized = {}
        super().abandon(model)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | prefixed("fisher", self.fisher)

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.fisher = without_prefix("fisher", state)

    def _parameters(self) -> dict[str, nn.Parameter]:
        downs = {f"{name}::a": pair.down for name, pair in self.pairs.items()}
        return downs | {f"{name}::b": pair.up for name, pair in self.pairs.items()}
