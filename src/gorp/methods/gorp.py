"""GORP: continual gradient low-rank projection. Wang et al. 2025, arXiv:2507.02503.

Two branches train different weights, or the same ones:

    LoRA        W x + s B A x              the rows of A are orthogonal to the shared space S
    full rank   W x + U C Vᵀ x             C, k x k, in the gradient's own frame, refreshed every T steps

and S grows at the end of each task from what the task's inputs were (paper: its gradients). `strict` mode turns the
equations into a guarantee: the change ΔW of any later task satisfies ‖ΔW S‖ <= 1e-5 ‖ΔW‖ in float32, so W x stays what
it was for every x in span(S), whatever the optimizer. `paper` mode is literal. `docs/equations.md` maps every equation
to its line.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from gorp.adapters import LoraPair, LoraSettings, add_lora, remove_lora
from gorp.coverage import Coverage
from gorp.delta import WeightDelta, leak, pack_deltas, unpack_deltas
from gorp.distributed import sum_over_ranks
from gorp.errors import ConfigError
from gorp.frame import Pairs, Seen, gradient_rows, is_due
from gorp.full_rank import FullRankBranch
from gorp.inputs import weight_inputs
from gorp.layers import LowRankUpdate, unwrap
from gorp.linalg import coarsest, leading_outside, project_out, stands_out
from gorp.memory import SubspaceMemory
from gorp.method import Method, TaskContext, prefixed, without_prefix
from gorp.methods.gorp_config import GorpConfig
from gorp.methods.gorp_summary import TaskSummary
from gorp.moments import check_moments
from gorp.targets import left_out_line, resolve
from gorp.task_report import TaskReport, check_room, full_and_nearly_full
from gorp.trainable import check_rank
from gorp.watch import GradientProbe, GradientTap


ALONE = 2.0
"""Rate of a B whose A is fixed, as a multiple of the learning rate: where both are trained, both move B A."""


@final
class Gorp(Method):
    """Gradient low-rank projection, in `strict` or `paper` mode."""

    name = "gorp"
    title = "LoRA and full matrices in the complement of a shared gradient space"
    paper = "Wang et al. 2025, arXiv:2507.02503"
    keeps = "a basis S per weight, at most budget·n x n floats; per weight and task 16·(m + n) bytes of readings"
    Config = GorpConfig
    uses_lora = True

    def __init__(self, config: GorpConfig | None = None, lora: LoraSettings | None = None) -> None:
        super().__init__((config or GorpConfig()).resolved())
        self.lora = lora or LoraSettings()
        self.memory = SubspaceMemory(energy=self.config.energy, budget=self.config.budget)
        self.coverage = Coverage()
        self.report = TaskReport()
        """Of the last finished task."""
        self._task = 0  # index of the task at hand, or of the last one
        self._shared: dict[str, tuple[Tensor, Tensor]] = {}  # A and B of the one pair, `adapter: shared`
        self._folded: dict[str, WeightDelta] = {}  # what the working weights hold besides W₀ when a task starts
        # While a task runs:
        self._pairs: dict[str, LoraPair] = {}
        self._full: FullRankBranch | None = None
        self._taps: dict[str, GradientTap] = {}
        self._probes: dict[str, GradientProbe] = {}
        self._summary: TaskSummary | None = None
        # S, readings and report as the task found them:
        self._before: tuple[dict[str, Tensor], dict[str, Tensor], TaskReport] | None = None

    @override
    def choose(self, model: nn.Module) -> list[str]:
        self._lora_layers = resolve(model, self.lora.target_modules, role="lora")
        self._full_layers = resolve(model, self.config.full_modules, role="full")
        if not self._lora_layers and not self._full_layers:
            raise ConfigError("gorp has nothing to train: both lora.target_modules and method.full_modules are `none`.")
        check_rank(model, self._lora_layers, self.lora.r, "lora.r")
        check_rank(model, self._full_layers, self.config.rank, "method.rank")
        return [*self._lora_layers, *(name for name in self._full_layers if name not in self._lora_layers)]

    @override
    def notes(self, model: nn.Module) -> list[str]:
        return [line for line in [left_out_line(model, self.lora.target_modules, self.config.full_modules)] if line]

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        super().begin_task(model, task)
        self._before = self.memory.state_dict(), self.coverage.state_dict(), self.report
        self.memory.begin_task()
        self._seed, self._task, self.report = task.seed, task.index, TaskReport()
        # No longer than the task, so that in a short one too each layer has a turn.
        self._period = min(self.config.refresh_every, task.num_steps)
        if self._folded is not self.deltas:  # those are in the weights already
            self.weights.load(self._folded)
        starts = self._aligned_rows(model, task) if self.config.adapter_rows == "aligned" else {}
        self._pairs = add_lora(model, self._lora_layers, self.lora) if self._lora_layers else {}
        for name, pair in self._pairs.items():
            self._place(name, pair, starts.get(name))
        self._full = FullRankBranch(
            model,
            self._full_layers,
            self.weights,
            self._folded,
            rank=self.config.rank,
            oversampling=self.config.oversampling,
            power_steps=self.config.power_steps,
            moments=self.config.moments,
        )
        watched = list(self._cores)
        if self.config.memory_source == "sketch":
            watched += [name for name in self._pairs if name not in self._cores]
        self._taps = {name: GradientTap(model.get_submodule(name.removesuffix(".weight"))) for name in watched}
        self._summary = TaskSummary(self.config, {name: self.weights.parameter(name).shape[1] for name in watched})
        self._open_taps()
        if self.config.projection == "both":
            # Rows of A that are not trained were chosen where the task's inputs are, so that rounding moves no B.
            protected = [n for n, pair in self._pairs.items() if n in self.memory and pair.down.requires_grad]
            self._probes = {n: GradientProbe(model.get_submodule(n.removesuffix(".weight"))) for n in protected}

    @property
    def _cores(self) -> Mapping[str, LowRankUpdate]:
        return self._full.layers if self._full else {}

    @override
    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        pairs = self._pairs.values()
        factors = [p for pair in pairs if pair.down.requires_grad for p in (pair.down, pair.up)]
        alone = [pair.up for pair in pairs if not pair.down.requires_grad]
        cores = [layer.core for layer in self._cores.values()]
        own = self.config.core_learning_rate
        core_rate = (learning_rate if own is None else own) * self.config.scale  # η α
        groups = [
            {"params": factors},
            {"params": alone, "lr": ALONE * learning_rate},
            {"params": cores, "lr": core_rate, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    @override
    def check_optimizer(self, optimizer: type, options: Mapping[str, Any]) -> None:
        if self._full_layers:
            check_moments(optimizer, options, rule=self.config.moments, rank=self.config.rank)

    @override
    def edit_gradients(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.step == 1 and self._summary is not None:
            self._summary.check(optimizer, has_cores=bool(self._cores))
        self._refresh({name: pairs for name, tap in self._taps.items() if (pairs := tap.take())}, optimizer)
        self._drop_rounding()
        for name, pair in self._pairs.items():
            if pair.down.grad is not None:
                pair.down.grad.copy_(self._project_factor(name, pair.down.grad))
        if self.config.mode == "paper":
            for name, layer in self._cores.items():
                if layer.core.grad is not None:
                    basis = self.memory.basis(f"{name}::core", layer.core)
                    layer.core.grad.copy_(project_out(layer.core.grad, basis))  # P = G' - S Sᵀ G'

    @override
    def after_step(self, model: nn.Module) -> None:
        super().after_step(model)
        if self.config.projection == "both":
            self._project_factors()
        self._open_taps()

    @override
    def end_task(self, model: nn.Module, optimizer: torch.optim.Optimizer, task: TaskContext) -> None:
        assert self._full is not None and self._summary is not None
        if self.config.projection == "both":
            self._project_factors()  # once more: an optimizer may end at an average that no step has projected
        changes = self._full.finish()
        for name, pair in self._pairs.items():
            change = changes.setdefault(name, WeightDelta(self.weights.parameter(name).shape))
            change.add(pair.delta())
            if name in self._shared:  # one pair for all tasks: this task's change is what it moved
                down, up = self._shared[name]
                change.append(-pair.scale * up.to(pair.up), down.to(pair.down).mT)
        for name, change in changes.items():
            before = self.deltas.get(name, WeightDelta(change.shape)).to("cpu")
            self._keep(name, change)
            self.coverage.move(name, change)
            if self.memory.size(name):
                parameter = self.weights.parameter(name)
                wide = torch.promote_types(parameter.dtype, torch.float32)
                basis = self.memory.basis(name, parameter, dtype=wide)
                self.report.leak[name] = leak(change, basis)
                self.report.served[name] = self.weights.served_leak(name, before, self.deltas[name], basis)
            if self.config.memory_source != "inputs":
                self._summary.remember(self.memory, name, optimizer, self._pairs.get(name), self._cores.get(name))
        self._fold(changes)
        self._take_out(model)
        self.weights.load(self.deltas)
        if self.config.memory_source == "inputs":
            rows = self.config.memory_rows
            for names, inputs in weight_inputs(model, list(changes), task.batches, rows=rows):
                self.memory.extend_above(names, inputs.total, threshold=self.config.threshold)
                for name in names:
                    basis, weight = self.memory.basis(name, inputs.total), self.weights.parameter(name)
                    self.coverage.enter(task.name, name, inputs, basis=basis, weight=weight)
            self.coverage.release(self.memory.released, newest=task.name)
        self._before = None

    @override
    def abandon(self, model: nn.Module) -> None:
        if self._before is not None:
            memory, readings, self.report = self._before
            self.memory.load_state_dict(memory)
            self.coverage.load_state_dict(readings)
        self._before = None
        self._take_out(model)
        super().abandon(model)

    def _take_out(self, model: nn.Module) -> None:
        """Leave the model's layers as they were, and drop all that belongs to the running task."""
        for watch in (*self._taps.values(), *self._probes.values()):
            watch.remove()
        unwrap(model)
        remove_lora(model)
        self._pairs, self._full, self._taps, self._summary, self._probes = {}, None, {}, None, {}

    @override
    def memory_tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.memory.state_dict().items() if not name.endswith("::energy")}

    @override
    def facts(self) -> dict[str, Any]:
        told = self.report.facts(self.memory, self._trained) | {"mode": self.config.mode}
        told["earlier"] = self.coverage.facts()
        dtypes = [str(self.weights.parameter(name).dtype).removeprefix("torch.") for name in self.report.served]
        done = self.report.warnings(self.memory, dtypes) if self.config.mode == "strict" else []
        return super().facts() | told | {"warnings": [*done, *self._outlook(self._task)]}

    @override
    def warnings(self, finished: int) -> list[str]:
        check_room(self._stuck(), self._trained)
        return self._outlook(finished)

    def _outlook(self, finished: int) -> list[str]:
        return full_and_nearly_full(self.memory, self._stuck(), len(self._trained), finished)

    @property
    def _trained(self) -> list[str]:
        """The names of the weights that a task trains."""
        return [f"{name}.weight" for name in dict.fromkeys([*self._full_layers, *self._lora_layers])]

    def _stuck(self) -> list[str]:
        """The trained weights that no task can change, because each of their branches is projected to nothing."""
        config, found = self.config, []
        for name in self._trained:
            layer, full = name.removesuffix(".weight"), []
            if layer in self._full_layers:
                full.append(self.memory.is_full(name if config.mode == "strict" else f"{name}::core"))
            if layer in self._lora_layers:
                side = f"{name}::rank" if config.adapter_side == "rank" else name
                held = config.projection == "both" and config.adapter == "fresh"
                full.append(held and self.memory.is_full(side))
            if all(full):
                found.append(name)
        return found

    @override
    def state_dict(self) -> dict[str, Tensor]:
        shared = {f"{name}::{i}": x for name, pair in self._shared.items() for i, x in zip("ab", pair, strict=True)}
        state = super().state_dict() | prefixed("memory", self.memory.state_dict()) | prefixed("shared", shared)
        state |= prefixed("coverage", self.coverage.state_dict())
        if self.config.adapter == "shared":
            state |= prefixed("folded", pack_deltas(self._folded))
        if self._full and self._summary:  # in the middle of a task
            state |= prefixed("sketch", self._summary.state_dict()) | prefixed("full", self._full.state_dict())
            fixed = {name: pair.down.detach() for name, pair in self._pairs.items() if not pair.down.requires_grad}
            state |= prefixed("aligned", fixed)
        return state

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.memory.load_state_dict(without_prefix("memory", state))
        self.coverage.load_state_dict(without_prefix("coverage", state))
        shared = without_prefix("shared", state)
        names = [key.removesuffix("::a") for key in shared if key.endswith("::a")]
        self._shared = {name: (shared[f"{name}::a"], shared[f"{name}::b"]) for name in names}
        fresh = self.config.adapter == "fresh"
        self._folded = self.deltas if fresh else unpack_deltas(without_prefix("folded", state))
        if self._full and self._summary:
            self._summary.load_state_dict(without_prefix("sketch", state))
            self._full.load_state_dict(without_prefix("full", state))
            for name, rows in without_prefix("aligned", state).items():
                self._pairs[name].down.data.copy_(rows)
        self._open_taps()

    def _aligned_rows(self, model: nn.Module, task: TaskContext) -> dict[str, Tensor]:
        """A of each weight that S protects: the task's leading inputs outside S, r x n, orthonormal or zero."""
        names = [f"{name}.weight" for name in self._lora_layers if self.memory.size(f"{name}.weight")]
        # A layer that no row has reached has no inputs to lead, and its A is zero.
        rows = {name: torch.zeros(self.lora.r, self.memory.dimension(name)) for name in names}
        count = -(-self.config.memory_rows // 3)
        for group, inputs in weight_inputs(model, names, task.batches, rows=count) if names else ():
            for name in group:
                found = leading_outside(inputs.total, self.memory.basis(name, inputs.total), count=self.lora.r)
                rows[name] = torch.cat([found, found.new_zeros(self.lora.r - len(found), found.shape[1])])
        return rows

    def _place(self, name: str, pair: LoraPair, aligned: Tensor | None) -> None:
        """Put A where it may be: the shared pair where it stopped, a fresh one into the complement of S."""
        if name in self._shared:
            pair.load(*self._shared[name])
        elif aligned is not None:
            pair.down.data = aligned.to(pair.down) * pair.down.data.norm(dim=1, keepdim=True)
            pair.down.requires_grad_(False)
        elif self.config.projection == "both":
            size = pair.down.data.norm(dim=1, keepdim=True)
            inside = self.memory.project_rows(name, pair.down.data)
            pair.down.data = inside * (size / inside.norm(dim=1, keepdim=True).clamp(min=1e-12))

    def _project_factors(self) -> None:
        for name, pair in self._pairs.items():
            if pair.down.requires_grad:
                pair.down.data = self._project_factor(name, pair.down.data)  # A ← A (I - S Sᵀ)

    def _project_factor(self, name: str, rows: Tensor) -> Tensor:
        """G_A - G_A S Sᵀ in the input coordinates of A; or S on the side of its r rows."""
        if self.config.adapter_side == "rank":
            return project_out(rows, self.memory.basis(f"{name}::rank", rows.mT))
        return self.memory.project_rows(name, rows)

    @torch.no_grad()
    def _drop_rounding(self) -> None:
        """Zero the gradients of the pairs whose weight's gradient lies in S: rounding is all that they hold."""
        rows = {}
        for name, probe in self._probes.items():
            row, down = probe.take(), self._pairs[name].down
            rows[name] = down.new_zeros(down.shape[1]) if row is None else row.to(down)
        if not rows:
            return
        sums = sum_over_ranks(torch.cat(list(rows.values()))).split([len(row) for row in rows.values()])
        known = [probe.made_in for probe in self._probes.values() if probe.made_in is not None]
        for name, total in zip(rows, sums, strict=True):
            # A rank that has never used this layer takes what its others are made in, so that ranks agree.
            made_in = self._probes[name].made_in or (coarsest(*known) if known else None)
            speaks = stands_out(total[None], self.memory.basis(name, total), made_in=made_in).to(total)
            for factor in (self._pairs[name].down, self._pairs[name].up):
                if factor.grad is not None:
                    factor.grad.mul_(speaks)

    @torch.no_grad()
    def _refresh(self, shown: Mapping[str, Pairs], optimizer: torch.optim.Optimizer) -> None:
        """Of the layers whose turn it is: feed the sketches, and give the cores new frames."""
        assert self._full is not None and self._summary is not None
        seen = {}
        for name, pairs in shown.items():
            count = self.config.rank + self.config.oversampling
            rows = gradient_rows(pairs, count=count, generator=self._generator(name))
            self._summary.feed(name, rows)
            if name in self._cores:
                like, strict = self._cores[name].right.mT, self.config.mode == "strict"
                basis = self.memory.basis(name, like) if strict else like.new_zeros(like.shape[1], 0)
                seen[name] = Seen(pairs=pairs, basis=basis, rows=rows)
        self._full.refresh(seen, optimizer)

    def _keep(self, name: str, change: WeightDelta) -> None:
        """Add the task's change of one weight to what all tasks added to it."""
        held = self.deltas.setdefault(name, WeightDelta(change.shape))
        if not held.is_dense:  # a dense sum takes a matrix, however short the factors are
            change.recompress(self.config.recompress)
        held.add(change.to("cpu"))

    def _fold(self, changes: Mapping[str, WeightDelta]) -> None:
        """Say what the working weights hold besides W₀ when the next task starts: all, but for the shared pairs."""
        if self.config.adapter == "fresh":
            self._folded = self.deltas
            return
        self._shared = {n: (p.down.detach().cpu().clone(), p.up.detach().cpu().clone()) for n, p in self._pairs.items()}
        for name in self._cores:
            folded = WeightDelta(changes[name].shape)
            folded.add(self.deltas[name])
            if name in self._pairs:
                folded.append(-self._pairs[name].scale * self._pairs[name].up, self._pairs[name].down.mT)
            self._folded[name] = folded

    def _open_taps(self) -> None:
        """Watch, in the coming step, the layers whose turn it is."""
        for index, tap in enumerate(self._taps.values()):
            offset = index if self.config.staggered else 0
            tap.open = is_due(self.step + 1, every=self._period, offset=offset)

    def _generator(self, name: str) -> torch.Generator:
        """Randomness that depends on the place alone, so that a resumed run draws the same numbers."""
        index = list(self._taps).index(name)
        seed = ((self._seed * 1009 + self._task) * 100_003 + self.step) * 1009 + index
        return torch.Generator().manual_seed(seed % 2**63)
