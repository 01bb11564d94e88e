"""GORP while one task runs: the LoRA pairs, the cores, and what is watched to project and to remember.

Made in `begin_task`, gone after `end_task` or `abandon`. What outlives a task belongs to `gorp.methods.gorp.method`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gorp.core.distributed import sum_over_ranks
from gorp.core.frame import Pairs, Seen, gradient_rows, is_due
from gorp.core.linalg import coarsest, leading_outside, project_out, stands_out
from gorp.core.memory import SubspaceMemory
from gorp.core.state import prefixed, without_prefix
from gorp.layers.full_rank import FullRankBranch
from gorp.layers.inputs import weight_inputs
from gorp.layers.lora import LoraPair, LoraSettings, add_lora, remove_lora
from gorp.layers.low_rank import LowRankUpdate, unwrap
from gorp.layers.names import layers_of, weight_name
from gorp.layers.watch import PairWatch, RowWatch
from gorp.methods.base import TaskContext
from gorp.methods.gorp.config import GorpConfig
from gorp.methods.gorp.shared_adapter import SharedAdapter
from gorp.methods.gorp.summary import TaskSummary
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta


ALONE = 2.0
"""Rate of a B whose A is fixed, as a multiple of the learning rate: where both are trained, both move B A."""

ROWS_BEFORE = 8
"""A task's leading inputs are looked for in one of so many of the rows that S is grown by: r of them need fewer."""


class GorpTask:
    """One task of GORP.

    Args:
        model: As the earlier tasks left it.
        task: The task.
        config: Options without open fields.
        lora: Settings of the pairs.
        lora_layers: Layers that get a pair.
        full_layers: Layers that get a core.
        weights: W₀ of the model.
        memory: S as the earlier tasks left it; it does not change while the task runs.
        folded: What the working weights hold besides W₀, by weight.
        shared: The pairs of the earlier tasks, where there is one pair for all.
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
        folded: Mapping[str, WeightDelta],
        shared: SharedAdapter | None,
    ) -> None:
        self.config, self.memory = config, memory
        self._seed, self._index = task.seed, task.index
        # No longer than the task, so that in a short one too each layer has a turn.
        self._period = min(config.refresh_every, task.num_steps)
        aligned = [weight_name(name) for name in lora_layers] if config.adapter_rows == "aligned" else []
        starts = self._leading_inputs(model, task, aligned, r=lora.r)
        self.pairs: dict[str, LoraPair] = add_lora(model, list(lora_layers), lora) if lora_layers else {}
        """By the name of their weight."""
        if shared is not None:
            shared.start(self.pairs)
        for name, pair in self.pairs.items():
            self._place(name, pair, starts.get(name))
        self.full = FullRankBranch(
            model,
            full_layers,
            weights,
            folded,
            rank=config.rank,
            oversampling=config.oversampling,
            power_steps=config.power_steps or 0,
            moments=config.moments or "rotate",
        )
        watched = list(self.cores)
        if config.memory_source == "sketch":
            watched += [name for name in self.pairs if name not in self.cores]
        self.pair_watches = {name: PairWatch(layer) for name, layer in layers_of(model, watched).items()}
        self.summary = TaskSummary(config, {name: weights.parameter(name).shape[1] for name in watched})
        self.row_watches: dict[str, RowWatch] = {}
        if config.projection == "both":
            # Rows of A that are not trained were chosen where the task's inputs are, so that rounding moves no B.
            protected = [name for name, pair in self.pairs.items() if name in memory and pair.down.requires_grad]
            self.row_watches = {n: RowWatch(layer) for n, layer in layers_of(model, protected).items()}
        self.watch_due_layers(0)

    @property
    def cores(self) -> Mapping[str, LowRankUpdate]:
        """The layers with a core, by the name of their weight."""
        return self.full.layers

    def take_out(self, model: nn.Module) -> None:
        """Leave the model's layers as they were."""
        for watch in (*self.pair_watches.values(), *self.row_watches.values()):
            watch.remove()
        unwrap(model)
        remove_lora(model)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Both factors, a B alone, and the cores, each at its rate."""
        pairs = self.pairs.values()
        factors = [p for pair in pairs if pair.down.requires_grad for p in (pair.down, pair.up)]
        alone = [pair.up for pair in pairs if not pair.down.requires_grad]
        own = self.config.core_learning_rate
        core_rate = (learning_rate if own is None else own) * self.config.scale  # η α
        groups = [
            {"params": factors},
            {"params": alone, "lr": ALONE * learning_rate},
            {"params": [layer.core for layer in self.cores.values()], "lr": core_rate, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def edit_gradients(self, optimizer: torch.optim.Optimizer, *, step: int) -> None:
        """Project the gradients, and refresh the frames of the layers whose turn it is.

        Args:
            optimizer: Holds the moments of the cores.
            step: Steps finished before this one.
        """
        if step == 1:
            self.summary.check(optimizer, has_cores=bool(self.cores))
        found = {name: pairs for name, watch in self.pair_watches.items() if (pairs := watch.take())}
        self._refresh(found, optimizer, step)
        self._drop_rounding()
        for name, pair in self.pairs.items():
            if pair.down.grad is not None:
                pair.down.grad.copy_(self._project_factor(name, pair.down.grad))
        if self.config.mode == "paper":
            for name, layer in self.cores.items():
                if layer.core.grad is not None:
                    basis = self.memory.basis(f"{name}::core", layer.core)
                    layer.core.grad.copy_(project_out(layer.core.grad, basis))  # P = G' - S Sᵀ G'

    def project_factors(self) -> None:
        """A ← A (I - S Sᵀ) of every A that is trained, whatever the optimizer made of it."""
        if self.config.projection == "both":
            for name, pair in self.pairs.items():
                if pair.down.requires_grad:
                    pair.down.data = self._project_factor(name, pair.down.data)

    def watch_due_layers(self, step: int) -> None:
        """Watch, in the step after `step` finished ones, the layers whose turn it is."""
        for index, watch in enumerate(self.pair_watches.values()):
            offset = index if self.config.staggered else 0
            watch.on = is_due(step + 1, every=self._period, offset=offset)

    def finish(self, shared: SharedAdapter | None) -> dict[str, WeightDelta]:
        """The whole change ΔW of each weight; the cores are empty afterwards."""
        self.project_factors()  # once more: an optimizer may end at an average that no step has projected
        changes = self.full.finish()
        for name, pair in self.pairs.items():
            delta = pair.delta()
            change = changes.setdefault(name, WeightDelta(delta.shape))
            change.add(delta)
            if shared is not None:
                shared.take_off_earlier(name, pair, change)
        return changes

    def state_dict(self) -> dict[str, Tensor]:
        """What a task in its middle needs besides the optimizer and its own parameters."""
        fixed = {name: pair.down.detach() for name, pair in self.pairs.items() if not pair.down.requires_grad}
        state = prefixed("sketch", self.summary.state_dict()) | prefixed("full", self.full.state_dict())
        return state | prefixed("aligned", fixed)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave; other keys are left alone."""
        self.summary.load_state_dict(without_prefix("sketch", state))
        self.full.load_state_dict(without_prefix("full", state))
        for name, rows in without_prefix("aligned", state).items():
            self.pairs[name].down.data.copy_(rows)

    def _leading_inputs(
        self, model: nn.Module, task: TaskContext, names: Sequence[str], *, r: int
    ) -> dict[str, Tensor]:
        """A of each weight that S protects: the task's leading inputs outside S, r x n, orthonormal or zero."""
        names = [name for name in names if self.memory.size(name)]
        # A layer that no row has reached has no inputs to lead, and its A is zero.
        rows = {name: torch.zeros(r, self.memory.dimension(name)) for name in names}
        count = -(-self.config.memory_rows // ROWS_BEFORE)
        for readers, inputs in weight_inputs(model, names, task.batches, rows=count) if names else ():
            for name in readers:
                found = leading_outside(inputs.total, self.memory.basis(name, inputs.total), count=r)
                rows[name] = torch.cat([found, found.new_zeros(r - len(found), found.shape[1])])
        return rows

    def _place(self, name: str, pair: LoraPair, aligned: Tensor | None) -> None:
        """Put A of a fresh pair into the complement of S."""
        if aligned is not None:
            pair.down.data = aligned.to(pair.down) * pair.down.data.norm(dim=1, keepdim=True)
            pair.down.requires_grad_(False)
        elif self.config.projection == "both" and self.config.adapter == "fresh":
            size = pair.down.data.norm(dim=1, keepdim=True)
            inside = self.memory.project_rows(name, pair.down.data)
            pair.down.data = inside * (size / inside.norm(dim=1, keepdim=True).clamp(min=1e-12))

    def _project_factor(self, name: str, rows: Tensor) -> Tensor:
        """G_A - G_A S Sᵀ in the input coordinates of A; or S on the side of its r rows."""
        if self.config.adapter_side == "rank":
            return project_out(rows, self.memory.basis(f"{name}::rank", rows.mT))
        return self.memory.project_rows(name, rows)

    @torch.no_grad()
    def _drop_rounding(self) -> None:
        """Zero the gradients of the pairs whose weight's gradient lies in S: rounding is all that they hold."""
        rows = {}
        for name, watch in self.row_watches.items():
            row, down = watch.take(), self.pairs[name].down
            rows[name] = down.new_zeros(down.shape[1]) if row is None else row.to(down)
        if not rows:
            return
        sums = sum_over_ranks(torch.cat(list(rows.values()))).split([len(row) for row in rows.values()])
        known = [watch.made_in for watch in self.row_watches.values() if watch.made_in is not None]
        for name, total in zip(rows, sums, strict=True):
            # A rank that has never used this layer takes what its others are made in, so that ranks agree.
            made_in = self.row_watches[name].made_in or (coarsest(*known) if known else None)
            speaks = stands_out(total[None], self.memory.basis(name, total), made_in=made_in).to(total)
            for factor in (self.pairs[name].down, self.pairs[name].up):
                if factor.grad is not None:
                    factor.grad.mul_(speaks)

    @torch.no_grad()
    def _refresh(self, found: Mapping[str, Pairs], optimizer: torch.optim.Optimizer, step: int) -> None:
        """Of the layers whose turn it is: feed the sketches, and give the cores new frames."""
        seen = {}
        for name, pairs in found.items():
            count = self.config.rank + self.config.oversampling
            rows = gradient_rows(pairs, count=count, generator=self._generator(name, step))
            self.summary.feed(name, rows)
            if name in self.cores:
                like, strict = self.cores[name].right.mT, self.config.mode == "strict"
                basis = self.memory.basis(name, like) if strict else like.new_zeros(like.shape[1], 0)
                seen[name] = Seen(pairs=pairs, basis=basis, rows=rows)
        self.full.refresh(seen, optimizer)

    def _generator(self, name: str, step: int) -> torch.Generator:
        """Randomness that depends on the place alone, so that a resumed run draws the same numbers."""
        index = list(self.pair_watches).index(name)
        seed = ((self._seed * 1009 + self._index) * 100_003 + step) * 1009 + index
        return torch.Generator().manual_seed(seed % 2**63)
