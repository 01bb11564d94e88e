"""Experience replay: train on stored rows of earlier tasks beside the new ones. Chaudhry et al. 2019, 1902.10486.

    L = (Σ_new l + Σ_old l) / N     l: loss of a labelled token; N: number of labelled tokens of the step's new rows

One LoRA adapter is trained on all tasks. With each micro-batch of b new rows, about ρ·b stored rows run through the
model in a separate forward pass; their tokens have the same weight as new ones. The memory has M rows in all, an equal
share from each task, drawn at random. When a task is added, every earlier task's share shrinks.

**It stores rows**, as token ids: they stay in the workspace when a task's file of rows is deleted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer
from typing_extensions import override

from gorp.core.distributed import num_ranks, rank
from gorp.core.outputs import IGNORED, Batch, Outputs
from gorp.core.state import prefixed, without_prefix
from gorp.errors import ConfigError
from gorp.layers.lora import LoraSettings
from gorp.methods.base import MethodConfig, TaskContext
from gorp.methods.lora import SharedLoraMethod
from gorp.ranges import BETWEEN_TASKS, COUNT, POSITIVE


Row = dict[str, Tensor]
"""One row of a batch, without the batch dimension: L token ids, and L labels or one label."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(MethodConfig):
    """Options of replay."""

    memory_rows: Annotated[int, COUNT, BETWEEN_TASKS] = 1000
    """M: number of rows that are stored, over all tasks together."""
    ratio: Annotated[float, POSITIVE, BETWEEN_TASKS] = 1.0
    """ρ: number of stored rows that are trained on per new row."""


@final
class Replay(SharedLoraMethod):
    """Sequential LoRA that also trains on stored rows of earlier tasks."""

    name = "replay"
    title = "one LoRA adapter for all tasks, trained on stored rows of earlier tasks and the new ones"
    paper = "Chaudhry et al. 2019, arXiv:1902.10486"
    keeps = "rows of earlier tasks as token ids, memory_rows in all; it does not grow"
    Config = ReplayConfig
    stores_data = True

    def __init__(self, config: ReplayConfig | None = None, lora: LoraSettings | None = None) -> None:
        super().__init__(config, lora)
        self.rows: list[list[Row]] = []
        """The stored rows of each task, in random order, in CPU memory."""
        self._memory: list[Row] = []  # the stored rows of all tasks in one list, while a task runs
        self._seed = 0  # of the running task
        self._rows_seen = 0  # new rows so far in this step

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        super().begin_task(model, task)
        self._memory = [row for rows in self.rows for row in rows]
        self._seed, self._rows_seen = task.seed * 1000 + task.index, 0

    @override
    def extra_loss(self, model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor | None:
        if not self._memory:
            return None
        size = len(batch["labels"])
        chosen = self._draw(int(self._rows_seen * self.config.ratio), int((self._rows_seen + size) * self.config.ratio))
        self._rows_seen += size
        if not chosen:
            return None
        device = batch["labels"].device
        old = outputs.on({key: value.to(device) for key, value in padded_batch(chosen).items()})
        return outputs.mean(F.cross_entropy(old.logits.float(), old.labels, reduction="none"))

    def _draw(self, start: int, end: int) -> list[Row]:
        """Return rows `start` to `end` of the memory in this step's random order.

        The order does not depend on how the step is split into micro-batches.
        """
        generator = torch.Generator().manual_seed(self._seed * 2**24 + self.step)
        order = torch.randperm(len(self._memory), generator=generator).tolist()
        return [self._memory[order[(place * num_ranks() + rank()) % len(order)]] for place in range(start, end)]

    @override
    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().after_step(model, optimizer)
        self._rows_seen = 0

    @override
    def end_task(self, model: nn.Module, optimizer: Optimizer, task: TaskContext) -> None:
        share = max(1, self.config.memory_rows // (len(self.rows) + 1))
        new = [{key: x[0].cpu().clone() for key, x in row.items()} for row in task.batches(1, share)]
        self.rows = [*(rows[:share] for rows in self.rows), new]
        self._memory = []
        super().end_task(model, optimizer, task)

    @override
    def assume_learned(self, model: nn.Module, *, tasks: int, steps: int | None) -> None:
        raise ConfigError(
            "replay cannot be estimated: what it keeps, and the second pass of each step, depend on how long the rows "
            "of earlier tasks are. Train a few steps (`max_steps`) and measure the time and the memory."
        )

    @override
    def abandon(self, model: nn.Module) -> None:
        self._memory = []
        super().abandon(model)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        state = super().state_dict()
        for number, rows in enumerate(self.rows):
            state |= prefixed(f"rows/{number}", pack_rows(rows))
        return state

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        count = len({key.split("/")[1] for key in state if key.startswith("rows/")})
        self.rows = [unpack_rows(without_prefix(f"rows/{number}", state)) for number in range(count)]


def padded_batch(rows: Iterable[Row]) -> Batch:
    """Return rows as one batch, padded on the right: labels with -100, the other keys (also the mask) with 0."""
    columns = {key: [row[key] for row in rows] for key in next(iter(rows))}
    return {
        key: torch.stack(values)
        if values[0].dim() == 0
        else pad_sequence(values, batch_first=True, padding_value=IGNORED if key == "labels" else 0)
        for key, values in columns.items()
    }


def pack_rows(rows: list[Row]) -> dict[str, Tensor]:
    """Return rows as flat tensors: per key the concatenated values, and the length in each row (-1 for a scalar)."""
    state = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        state[key] = torch.cat([value.reshape(-1) for value in values])
        state[f"{key}::lengths"] = torch.tensor([len(value) if value.dim() else -1 for value in values])
    return state


def unpack_rows(state: Mapping[str, Tensor]) -> list[Row]:
    """Return the rows that `pack_rows` packed."""
    columns = {}
    for key in (key for key in state if not key.endswith("::lengths")):
        lengths = state[f"{key}::lengths"].tolist()
        parts = state[key].split([abs(length) for length in lengths])
        columns[key] = [
            part.clone() if length >= 0 else part[0].clone() for part, length in zip(parts, lengths, strict=True)
        ]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
