"""The state of GORP while one task runs: LoRA pairs, cores, and the watches that record X and D of their layers.

`begin_task` makes it, `end_task` or `abandon` drops it. What outlives a task is in `gorp.methods.gorp.method`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gorp.core.distributed import sum_over_ranks
from gorp.core.frame import is_due, offsets
from gorp.core.linalg import coarsest, exceeds_rounding, leading_outside, project_out
from gorp.core.memory import SubspaceMemory
from gorp.core.sketched import FrameInputs, Pairs, gradient_rows
from gorp.core.state import prefixed, without_prefix
from gorp.layers.full_rank import FullRankBranch
from gorp.layers.inputs import weight_inputs
from gorp.layers.lora import LoraPair, LoraSettings, add_lora, remove_lora
from gorp.layers.low_rank import LowRankUpdate, unwrap
from gorp.layers.names import layers_of
from gorp.layers.watch import PairWatch, RowWatch
from gorp.methods.base import TaskContext
from gorp.methods.gorp.config import GorpConfig
from gorp.methods.gorp.shared_adapter import SharedAdapter
from gorp.methods.gorp.summary import TaskSummary
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta


B_RATE_FACTOR = 2.0
"""Learning rate of B if its A is fixed, as a multiple of the learning rate: two, because only one factor moves B A."""

ALIGN_ROWS_DIVISOR = 8
"""`memory_rows` divided by this is the number of rows that A is computed from: r directions need fewer rows than S."""


class GorpTask:
    """One running task of GORP.

    Args:
        model: The model as the earlier tasks left it.
        task: The task.
        config: The options, with every None resolved.
        lora: Settings of the LoRA pairs.
        lora_layers: Layers that get a pair.
        full_layers: Layers that get a core.
        weights: W₀ of the model.
        memory: S as the earlier tasks left it; it does not change while the task runs.
        starting_deltas: What the working weights hold besides W₀, by weight.
        shared: The factors of the earlier tasks, if one pair serves all tasks.
    """

    def __init__(
        self,
        model: nn.Module,
        task: TaskContext,
        *,
        config: GorpConfig,
        lora: LoraSettings,
        lora_layers: Sequence[str],
        full_layers: Sequence[str],
        weights: BaseWeights,
        memory: SubspaceMemory,
        starting_deltas: Mapping[str, WeightDelta],
        shared: SharedAdapter | None,
    ) -> None:
        self.config, self.memory = config, memory
        self._seed, self._index = task.seed, task.index
        self._period = config.refresh_every
        self.pairs: dict[str, LoraPair] = add_lora(model, list(lora_layers), lora) if lora_layers else {}
        """Name of a weight -> its pair."""
        if shared is not None:
            shared.load_into(self.pairs)
        for name, pair in self.pairs.items():
            self._init_rows(name, pair)
        self.full = FullRankBranch(
            model,
            full_layers,
            weights,
            starting_deltas,
            rank=config.rank,
            oversampling=config.oversampling,
            power_steps=config.power_steps or 0,
            moments=config.moments or "rotate",
        )
        watched = list(self.cores)
        if config.memory_source == "sketch":
            watched += [name for name in self.pairs if name not in self.cores]
        self.pair_watches = {name: PairWatch(layer) for name, layer in layers_of(model, watched).items()}
        self._shapes = {name: weights.parameter(name).shape for name in watched}
        self.summary = TaskSummary(config, {name: shape[1] for name, shape in self._shapes.items()})
        self.row_watches: dict[str, RowWatch] = {}
        if config.projection == "both":
            # A fixed A needs no watch: its rows are zero where the task's inputs outside S are only rounding error.
            protected = [name for name, pair in self.pairs.items() if name in memory and pair.down.requires_grad]
            self.row_watches = {n: RowWatch(layer) for n, layer in layers_of(model, protected).items()}

    def begin_training(self, model: nn.Module, task: TaskContext) -> None:
        """Compute the fixed rows of A from the task's rows, and choose the layers of the first refresh."""
        # At most the length of the task, so that each layer is refreshed in a short task too.
        self._period = min(self.config.refresh_every, task.num_steps)
        fixed = {name: pair for name, pair in self.pairs.items() if not pair.down.requires_grad}
        for name, rows in self._leading_inputs(model, task, fixed).items():
            down = fixed[name].down
            down.data = rows.to(down) * down.data.norm(dim=1, keepdim=True)
        self.watch_due_layers(0)

    @property
    def cores(self) -> Mapping[str, LowRankUpdate]:
        """The layers with a core, by the name of their weight."""
        return self.full.layers

    def remove_layers(self, model: nn.Module) -> None:
        """Remove the watches, cores and pairs from the model."""
        for watch in (*self.pair_watches.values(), *self.row_watches.values()):
            watch.remove()
        unwrap(model)
        remove_lora(model)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return a group of pairs with both factors trained, one of B whose A is fixed, and one of cores."""
        pairs = self.pairs.values()
        both_factors = [p for pair in pairs if pair.down.requires_grad for p in (pair.down, pair.up)]
        only_b = [pair.up for pair in pairs if not pair.down.requires_grad]
        own = self.config.core_learning_rate
        core_rate = (learning_rate if own is None else own) * self.config.scale  # η α
        groups = [
            {"params": both_factors},
            {"params": only_b, "lr": B_RATE_FACTOR * learning_rate},
            {"params": [layer.core for layer in self.cores.values()], "lr": core_rate, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def edit_gradients(self, optimizer: torch.optim.Optimizer, *, step: int) -> None:
        """Project the gradients, and refresh the frames of the layers that are due.

        Args:
            optimizer: Holds the moments of the cores.
            step: Number of steps finished before this one.
        """
        if step == 1:
            self.summary.check_optimizer(optimizer, has_cores=bool(self.cores))
        recorded = {name: pairs for name, watch in self.pair_watches.items() if (pairs := watch.take())}
        self._refresh(recorded, optimizer, step)
        self._zero_rounding()
        for name, pair in self.pairs.items():
            if pair.down.grad is not None:
                pair.down.grad.copy_(self._project_factor(name, pair.down.grad))
        if self.config.mode == "paper":
            for name, layer in self.cores.items():
                if layer.core.grad is not None:
                    basis = self.memory.basis(f"{name}::core", layer.core)
                    layer.core.grad.copy_(project_out(layer.core.grad, basis))  # P = G' - S Sᵀ G'

    def project_factors(self) -> None:
        """A ← A (I - S Sᵀ) for every trained A, so that it is exact whatever step the optimizer took."""
        if self.config.projection == "both":
            for name, pair in self.pairs.items():
                if pair.down.requires_grad:
                    pair.down.data = self._project_factor(name, pair.down.data)

    def watch_due_layers(self, step: int) -> None:
        """Switch on the watches of the layers that are refreshed in the step after `step` finished steps."""
        spread = offsets(self._shapes, every=self._period) if self.config.staggered else {}
        for name, watch in self.pair_watches.items():
            watch.on = is_due(step + 1, every=self._period, offset=spread.get(name, 0))

    def finish(self, shared: SharedAdapter | None) -> dict[str, WeightDelta]:
        """Return the change ΔW that the task made to each weight; the cores are zero afterwards."""
        self.project_factors()  # once more: an optimizer that averages ends at weights that no step has projected
        changes = self.full.finish()
        for name, pair in self.pairs.items():
            delta = pair.delta()
            change = changes.setdefault(name, WeightDelta(delta.shape))
            change.add(delta)
            if shared is not None:
                shared.subtract_earlier(name, pair, change)
        return changes

    def state_dict(self) -> dict[str, Tensor]:
        """Return what resuming the task needs besides the optimizer's state and the trainable parameters."""
        fixed = {name: pair.down.detach() for name, pair in self.pairs.items() if not pair.down.requires_grad}
        state = prefixed("sketch", self.summary.state_dict()) | prefixed("full", self.full.state_dict())
        return state | prefixed("aligned", fixed)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned; other keys are ignored."""
        self.summary.load_state_dict(without_prefix("sketch", state))
        self.full.load_state_dict(without_prefix("full", state))
        for name, rows in without_prefix("aligned", state).items():
            self.pairs[name].down.data.copy_(rows)

    def _leading_inputs(self, model: nn.Module, task: TaskContext, pairs: Mapping[str, LoraPair]) -> dict[str, Tensor]:
        """Return A, r x n, of each pair: the leading directions of the task's inputs outside S.

        Its rows are orthonormal, or zero where fewer than r directions stand out from rounding error.
        """
        # The A of a layer that no row of the task reaches stays zero.
        rows = {name: torch.zeros(pair.down.shape) for name, pair in pairs.items()}
        count = -(-self.config.memory_rows // ALIGN_ROWS_DIVISOR)
        for readers, inputs in (
            weight_inputs(model, list(pairs), task.batches, rows=count, reading=task.reading) if pairs else ()
        ):
            for name in readers:
                r = len(rows[name])
                leading = leading_outside(inputs.total, self.memory.basis(name, inputs.total), count=r)
                rows[name] = torch.cat([leading, leading.new_zeros(r - len(leading), leading.shape[1])])
        return rows

    def _init_rows(self, name: str, pair: LoraPair) -> None:
        """Fix A of a new pair, whose rows `begin_training` computes, or project its random rows off S.

        Each row keeps the norm that it was initialized with.
        """
        if self.config.adapter_rows == "aligned" and self.memory.size(name):
            pair.down.requires_grad_(False)
        elif self.config.projection == "both" and self.config.adapter == "fresh":
            norms = pair.down.data.norm(dim=1, keepdim=True)
            outside = self.memory.project_rows(name, pair.down.data)  # A (I - S Sᵀ), r x n
            pair.down.data = outside * (norms / outside.norm(dim=1, keepdim=True).clamp(min=1e-12))

    def _project_factor(self, name: str, rows: Tensor) -> Tensor:
        """Return G - G S Sᵀ for G = A or its gradient, r x n; with `adapter_side: rank` G - S Sᵀ G, with S r x s."""
        if self.config.adapter_side == "rank":
            return project_out(rows, self.memory.basis(f"{name}::rank", rows.mT))
        return self.memory.project_rows(name, rows)

    @torch.no_grad()
    def _zero_rounding(self) -> None:
        """Set the gradients of a pair to zero if its weight's gradient lies in S: they hold only rounding error."""
        rows = {}
        for name, watch in self.row_watches.items():
            row, down = watch.take(), self.pairs[name].down
            rows[name] = down.new_zeros(down.shape[1]) if row is None else row.to(down)
        if not rows:
            return
        sums = sum_over_ranks(torch.cat(list(rows.values()))).split([len(row) for row in rows.values()])
        known = [watch.compute_dtype for watch in self.row_watches.values() if watch.compute_dtype is not None]
        for name, total in zip(rows, sums, strict=True):
            # A rank that has never used this layer takes the dtype of its other layers, so that all ranks agree.
            compute_dtype = self.row_watches[name].compute_dtype or (coarsest(*known) if known else None)
            is_outside = exceeds_rounding(total[None], self.memory.basis(name, total), compute_dtype=compute_dtype).to(
                total
            )  # 0 or 1
            for factor in (self.pairs[name].down, self.pairs[name].up):
                if factor.grad is not None:
                    factor.grad.mul_(is_outside)

    @torch.no_grad()
    def _refresh(self, recorded: Mapping[str, Pairs], optimizer: torch.optim.Optimizer, step: int) -> None:
        """Update the sketches and the frames of the layers whose X and D were recorded in this step."""
        rows = gradient_rows(
            list(recorded.values()),
            count=self.config.rank + self.config.oversampling,
            generators=[self._generator(name, step) for name in recorded],
        )
        due, strict = {}, self.config.mode == "strict"
        for (name, pairs), found in zip(recorded.items(), rows, strict=True):
            self.summary.add_rows(name, found)
            if name in self.cores:
                like = self.cores[name].right.mT
                basis = self.memory.basis(name, like) if strict else like.new_zeros(like.shape[1], 0)
                due[name] = FrameInputs(pairs=pairs, basis=basis, rows=found)
        self.full.refresh(due, optimizer)

    def _generator(self, name: str, step: int) -> torch.Generator:
        """Return a generator seeded by seed, task, step and layer: a resumed run draws the same numbers."""
        index = list(self.pair_watches).index(name)
        seed = ((self._seed * 1009 + self._index) * 100_003 + step) * 1009 + index
        return torch.Generator().manual_seed(seed % 2**63)
