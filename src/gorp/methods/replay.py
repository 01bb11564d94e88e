"""Experience replay: rows of earlier tasks are trained on again, beside the new ones. Chaudhry et al. 2019, 1902.10486.

    L = (Σ_new l + Σ_old l) / N         l of a token that has a label, N such tokens of the new rows in the step

One LoRA adapter for all tasks. In every micro-batch of b new rows about ρ·b old ones go through the model in a pass of
their own; a token of theirs weighs what a new one weighs. The memory has M rows in all, an equal share from each task,
drawn at random; when a task is added each earlier one gives up some.

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
"""What a row is in a batch, without the batch's dimension: L token ids, L labels; or one label."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(MethodConfig):
    """Options of replay."""

    memory_rows: Annotated[int, COUNT, BETWEEN_TASKS] = 1000
    """M: rows of earlier tasks that are kept, all tasks together."""
    ratio: Annotated[float, POSITIVE, BETWEEN_TASKS] = 1.0
    """ρ: rows of the memory for each new row."""


@final
class Replay(SharedLoraMethod):
    """Sequential LoRA that goes on seeing some of what it saw."""

    name = "replay"
    title = "one LoRA adapter, trained on rows of earlier tasks beside the new ones"
    paper = "Chaudhry et al. 2019, arXiv:1902.10486"
    keeps = "rows of earlier tasks as token ids, memory_rows in all: constant"
    Config = ReplayConfig
    stores_data = True

    def __init__(self, config: ReplayConfig | None = None, lora: LoraSettings | None = None) -> None:
        super().__init__(config, lora)
        self.rows: list[list[Row]] = []
        """Of each task, in random order, in main memory."""
        self._all: list[Row] = []  # the same in a row, while a task runs
        self._seed = self._seen = 0  # of the task at hand; new rows of this step so far

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        super().begin_task(model, task)
        self._all = [row for rows in self.rows for row in rows]
        self._seed, self._seen = task.seed * 1000 + task.index, 0

    @override
    def extra_loss(self, model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor | None:
        if not self._all:
            return None
        size = len(batch["labels"])
        chosen = self._draw(int(self._seen * self.config.ratio), int((self._seen + size) * self.config.ratio))
        self._seen += size
        if not chosen:
            return None
        device = batch["labels"].device
        old = outputs.on({key: value.to(device) for key, value in together(chosen).items()})
        return outputs.mean(F.cross_entropy(old.logits.float(), old.labels, reduction="none"))

    def _draw(self, start: int, end: int) -> list[Row]:
        """Places `start` to `end` of this step's own order of the memory: the same however the step is cut."""
        generator = torch.Generator().manual_seed(self._seed * 2**24 + self.step)
        order = torch.randperm(len(self._all), generator=generator).tolist()
        return [self._all[order[(place * num_ranks() + rank()) % len(order)]] for place in range(start, end)]

    @override
    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().after_step(model, optimizer)
        self._seen = 0

    @override
    def end_task(self, model: nn.Module, optimizer: Optimizer, task: TaskContext) -> None:
        share = max(1, self.config.memory_rows // (len(self.rows) + 1))
        new = [{key: x[0].cpu().clone() for key, x in row.items()} for row in task.batches(1, share)]
        self.rows = [*(rows[:share] for rows in self.rows), new]
        self._all = []
        super().end_task(model, optimizer, task)

    @override
    def assume_learned(self, model: nn.Module, *, tasks: int, steps: int | None) -> None:
        raise ConfigError(
            "replay cannot be estimated: what it keeps, and the second pass of each step, depend on how long the rows "
            "of earlier tasks are. Train a few steps (`max_steps`) and look at the time and the memory."
        )

    @override
    def abandon(self, model: nn.Module) -> None:
        self._all = []
        super().abandon(model)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        state = super().state_dict()
        for number, rows in enumerate(self.rows):
            state |= prefixed(f"rows/{number}", packed(rows))
        return state

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        count = len({key.split("/")[1] for key in state if key.startswith("rows/")})
        self.rows = [unpacked(without_prefix(f"rows/{number}", state)) for number in range(count)]


def together(rows: Iterable[Row]) -> Batch:
    """Rows as one batch, padded at the right: labels with -100, all else with 0, which the mask leaves out."""
    columns = {key: [row[key] for row in rows] for key in next(iter(rows))}
    return {
        key: torch.stack(values)
        if values[0].dim() == 0
        else pad_sequence(values, batch_first=True, padding_value=IGNORED if key == "labels" else 0)
        for key, values in columns.items()
    }


def packed(rows: list[Row]) -> dict[str, Tensor]:
    """Each key's numbers in a row, and how many each row has; -1 for one that is no list."""
    state = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        state[key] = torch.cat([value.reshape(-1) for value in values])
        state[f"{key}::lengths"] = torch.tensor([len(value) if value.dim() else -1 for value in values])
    return state


def unpacked(state: Mapping[str, Tensor]) -> list[Row]:
    """The inverse of `packed`."""
    columns = {}
    for key in (key for key in state if not key.endswith("::lengths")):
        lengths = state[f"{key}::lengths"].tolist()
        parts = state[key].split([abs(length) for length in lengths])
        columns[key] = [
            part.clone() if length >= 0 else part[0].clone() for part, length in zip(parts, lengths, strict=True)
        ]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
