"""O-LoRA: orthogonal subspace learning. Wang et al. 2023, arXiv:2310.14152.

    L = L_task + λ Σ_{i<t} Σ_layers ‖Aᵢ Aₜᵀ‖²                                                   (eq. 7 and 8)

Each task trains a new pair. The penalty makes the rows of its A orthogonal to the rows of every earlier A. Finished
pairs are merged into the weights, which computes the same function; their rows of A are kept for the penalty. The
released code sums absolute values instead of squares: `penalty: absolute`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from gorp.core.outputs import Batch, Outputs
from gorp.core.state import prefixed, without_prefix
from gorp.layers.lora import LoraSettings
from gorp.methods.base import MethodConfig, TaskContext
from gorp.methods.lora import LoraMethod
from gorp.ranges import BETWEEN_TASKS, NOT_NEGATIVE


@dataclass(frozen=True, kw_only=True)
class OLoraConfig(MethodConfig):
    """Options of O-LoRA."""

    strength: Annotated[float, NOT_NEGATIVE, BETWEEN_TASKS] = 0.5
    """λ: weight of the overlap with earlier pairs. (Released code: 0.5.)"""
    penalty: Literal["squared", "absolute"] = "squared"
    """What is summed over the entries of Aᵢ Aₜᵀ: squares (the paper) or absolute values (the released code)."""


@final
class OLora(LoraMethod):
    """Adds a penalty on the overlap between the rows of A of different tasks."""

    name = "olora"
    title = "a new LoRA pair per task, with a penalty that makes it orthogonal to the earlier ones"
    paper = "Wang et al. 2023, arXiv:2310.14152"
    keeps = "the A rows of every task: r x n floats per weight and task"
    Config = OLoraConfig
    loss_reads_batch = False

    def __init__(self, config: OLoraConfig | None = None, lora: LoraSettings | None = None) -> None:
        super().__init__(config, lora)
        self.rows: dict[str, Tensor] = {}
        """The A of all earlier tasks of each weight, stacked: r·(t - 1) x n, in CPU memory."""
        self._device_rows: dict[str, Tensor] = {}  # the same on the devices of the pairs, while a task runs

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        super().begin_task(model, task)
        self._device_rows = {name: rows.to(self.pairs[name].down.device) for name, rows in self.rows.items()}

    @override
    def extra_loss(self, model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor | None:
        if not self._device_rows:
            return None
        overlaps = [rows @ self.pairs[name].down.mT for name, rows in self._device_rows.items()]  # (rt, n) @ (n, r)
        square = self.config.penalty == "squared"
        return self.config.strength * torch.stack([(o.square() if square else o.abs()).sum() for o in overlaps]).sum()

    @override
    def end_task(self, model: nn.Module, optimizer: Optimizer, task: TaskContext) -> None:
        for name, pair in self.pairs.items():
            finished = pair.down.detach().cpu().clone()
            self.rows[name] = torch.cat([self.rows[name], finished]) if name in self.rows else finished
        self._device_rows = {}  # the device holds nothing of earlier tasks between two tasks
        super().end_task(model, optimizer, task)

    @override
    def assume_learned(self, model: nn.Module, *, tasks: int, steps: int | None) -> None:
        super().assume_learned(model, tasks=tasks, steps=steps)
        height = tasks * self.lora.r
        self.rows = {name: torch.empty(height, delta.shape[1], device="meta") for name, delta in self.deltas.items()}

    @override
    def resident_tensors(self) -> list[Tensor]:
        return list(self._device_rows.values())

    @override
    def abandon(self, model: nn.Module) -> None:
        self._device_rows = {}
        super().abandon(model)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | prefixed("rows", self.rows)

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.rows = without_prefix("rows", state)
