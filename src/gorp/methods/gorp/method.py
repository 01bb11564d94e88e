"""GORP: continual gradient low-rank projection. Wang et al. 2025, arXiv:2507.02503.

Two branches train different weights, or the same ones:

    LoRA        W x + s B A x              the rows of A are orthogonal to the protected subspace S
    full rank   W x + U C Vᵀ x             C, k x k, in the frame U, V of the gradient, refreshed every T steps

S grows at the end of each task from the task's inputs (paper: from its gradients). `strict` mode gives a guarantee: the
change ΔW of any later task satisfies ‖ΔW S‖ <= 1e-5 ‖ΔW‖ in float32, with any optimizer, so W x does not change for x
in span(S). `paper` mode follows the published equations. `docs/equations.md` says where each equation is computed.

This file holds what is carried from task to task; `gorp.methods.gorp.task` holds what exists while one task runs.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from gorp.core.moments import check_moments
from gorp.errors import ConfigError
from gorp.layers.lora import LoraSettings
from gorp.layers.names import layer_name, weight_name
from gorp.layers.targets import left_out_line, resolve
from gorp.layers.trainable import check_rank
from gorp.methods.base import Directions, Method, TaskContext, Work
from gorp.methods.gorp.config import GorpConfig
from gorp.methods.gorp.shapes import TrainedWeight, delta_rank, directions, refresh_counts, trained_weights, work
from gorp.methods.gorp.shared_adapter import SharedAdapter
from gorp.methods.gorp.task import GorpTask
from gorp.protection.report import check_room
from gorp.protection.space import SharedSpace
from gorp.weights.delta import WeightDelta


@final
class Gorp(Method):
    """Gradient low-rank projection, in `strict` or `paper` mode."""

    name = "gorp"
    title = "LoRA pairs and full-rank cores, with no change along the input directions of earlier tasks"
    paper = "Wang et al. 2025, arXiv:2507.02503"
    keeps = "a basis S per weight, at most budget·n x n floats; per weight and task 16·(m + n) bytes of input summaries"
    Config = GorpConfig
    uses_lora = True

    def __init__(self, config: GorpConfig | None = None, lora: LoraSettings | None = None) -> None:
        super().__init__((config or GorpConfig()).resolved())
        self.lora = lora or LoraSettings()
        if self.config.mode == "paper" and self.lora.target_modules is None:
            self.lora = replace(self.lora, target_modules="auto")  # queries and values, as published
        self.space = SharedSpace(budget=self.config.budget, energy=self.config.energy)
        self.memory = self.space.memory
        self.task: GorpTask | None = None
        """The running task: its pairs, cores and watches. None between tasks."""
        self._task_index = 0  # of the running task, or of the last one
        self._shared = SharedAdapter() if self.config.adapter == "shared" else None

    @property
    def _starting_deltas(self) -> Mapping[str, WeightDelta]:
        """The deltas in the working weights when a task starts: all, except what a shared pair adds by itself."""
        return self.deltas if self._shared is None else self._shared.core_deltas

    @override
    def choose(self, model: nn.Module) -> list[str]:
        self._lora_layers = resolve(model, self.lora.targets, role="lora")
        self._full_layers = resolve(model, self.config.full_modules, role="full")
        if not self._lora_layers and not self._full_layers:
            raise ConfigError(
                "gorp has nothing to train: both lora.target_modules and method.full_modules are `none`. Set one of "
                "them to layer names or `auto`."
            )
        check_rank(model, self._lora_layers, self.lora.r, "lora.r")
        check_rank(model, self._full_layers, self.config.rank, "method.rank")
        return [*self._lora_layers, *(name for name in self._full_layers if name not in self._lora_layers)]

    @override
    def notes(self, model: nn.Module) -> list[str]:
        return [line for line in [left_out_line(model, self.lora.targets, self.config.full_modules)] if line]

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        super().begin_task(model, task)
        self.space.begin_task()
        self._task_index = task.index
        if self._shared is not None:
            self.weights.load(self._starting_deltas)
        self.task = GorpTask(
            model,
            task,
            config=self.config,
            lora=self.lora,
            lora_layers=self._lora_layers,
            full_layers=self._full_layers,
            weights=self.weights,
            memory=self.memory,
            starting_deltas=self._starting_deltas,
            shared=self._shared,
        )

    @override
    def begin_training(self, model: nn.Module, task: TaskContext) -> None:
        assert self.task is not None
        self.task.begin_training(model, task)

    @override
    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        assert self.task is not None
        return self.task.parameter_groups(learning_rate)

    @override
    def check_optimizer(self, optimizer: type, options: Mapping[str, Any]) -> None:
        if self._full_layers:
            check_moments(optimizer, options, rule=self.config.moments, rank=self.config.rank)

    @override
    def edit_gradients(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        assert self.task is not None
        self.task.edit_gradients(optimizer, step=self.step)

    @override
    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        assert self.task is not None
        super().after_step(model, optimizer)
        self.task.project_factors()
        self.task.watch_due_layers(self.step)

    @override
    def end_task(self, model: nn.Module, optimizer: torch.optim.Optimizer, task: TaskContext) -> None:
        assert self.task is not None
        running, config = self.task, self.config
        changes = running.finish(self._shared)
        for name, change in changes.items():
            before = self.deltas.get(name, WeightDelta(change.shape)).to("cpu")
            self._add_to_delta(name, change)
            self.space.record_change(name, change, weights=self.weights, before=before, after=self.deltas[name])
            if config.memory_source != "inputs":
                pair, core = running.pairs.get(name), running.cores.get(name)
                running.summary.extend_memory(self.memory, name, optimizer, pair, core)
        if self._shared is not None:
            self._shared.keep(running.pairs, running.cores, self.deltas)
        self._remove_task(model)
        self.weights.load(self.deltas)
        if config.memory_source == "inputs":
            self._protect_inputs(model, list(changes), task)
        self.space.end_task()

    def _protect_inputs(self, model: nn.Module, names: list[str], task: TaskContext) -> None:
        rows, threshold = self.config.memory_rows, self.config.threshold
        self.space.grow(model, names, task.name, task.batches, rows=rows, threshold=threshold, reading=task.reading)

    @override
    def check_adopt(self) -> None:
        for option, wanted in (("mode", "strict"), ("memory_source", "inputs")):
            if (value := getattr(self.config, option)) != wanted:
                raise ConfigError(
                    f"{option} is {value}: what it protects of a task is computed from the task's gradients, which are "
                    f"gone. To protect a task that was learned without gorp, use {option}={wanted!r}."
                )

    @override
    def adopt(
        self, model: nn.Module, task: TaskContext, changes: Mapping[str, WeightDelta], directions: Directions | None
    ) -> None:
        self._task_index = task.index
        self.space.begin_task()
        self.deltas = dict(changes)
        self.weights.load(self.deltas)
        if directions is None:
            self._protect_inputs(model, self._weight_names, task)
        else:
            self.space.protect(directions)
        self.space.end_task()

    @override
    def abandon(self, model: nn.Module) -> None:
        self.space.abandon()
        self._remove_task(model)
        super().abandon(model)

    def _remove_task(self, model: nn.Module) -> None:
        if self.task is not None:
            self.task.remove_layers(model)
        self.task = None

    def _add_to_delta(self, name: str, change: WeightDelta) -> None:
        """Add the task's change of one weight to its delta."""
        delta = self.deltas.setdefault(name, WeightDelta(change.shape))
        if not delta.is_dense:  # a dense sum needs no low rank
            change.recompress(self.config.recompress)
        delta.add(change.to("cpu"))

    @override
    def assume_learned(self, model: nn.Module, *, tasks: int, steps: int | None) -> None:
        config, r, weights = self.config, self.lora.r, self._trained
        refreshes = refresh_counts(weights, config, steps)
        for weight in weights:
            rank, columns = delta_rank(weight, config, r, refreshes=refreshes[weight.name]), None
            if rank is not None:
                # From the second task on one shared pair moves from s B' A' to s B A: twice r columns.
                columns = tasks * rank + (tasks - 1) * r * (weight.lora and self._shared is not None)
            self.deltas[weight.name] = WeightDelta.without_data(weight.shape, columns)
        if self._shared is not None:
            self._shared.assume(weights, self.deltas, r=r)
        sizes = directions(weights, config, r, tasks=tasks, steps=steps)
        read = {w.name: w.shape for w in weights} if config.memory_source == "inputs" else {}
        self.space.assume(sizes, read=read, tasks=tasks)

    @override
    def resident_tensors(self) -> list[Tensor]:
        return list(self.space.bases().values())

    @override
    def step_work(self, tokens: Callable[[str], int]) -> Iterator[Work]:
        sizes = {weight.name: self.memory.size(weight.name) for weight in self._trained}
        return work(self._trained, sizes, self.config, self.lora.r, tokens)

    @property
    def _trained(self) -> list[TrainedWeight]:
        """The trained weights."""
        return trained_weights(self.weights, cores=self._full_layers, pairs=self._lora_layers)

    @override
    def memory_tensors(self) -> dict[str, Tensor]:
        return self.space.bases()

    @override
    def facts(self) -> dict[str, Any]:
        facts = super().facts() | self.space.facts(self._weight_names) | {"mode": self.config.mode}
        warnings = self.space.warnings(self.weights) if self.config.mode == "strict" else []
        return facts | {"warnings": [*warnings, *self._room_warnings(self._task_index)]}

    @override
    def warnings(self, finished: int) -> list[str]:
        check_room(self._full_weights(), self._weight_names)
        return self._room_warnings(finished)

    def _room_warnings(self, finished: int) -> list[str]:
        return self.space.next_task_warnings(self._full_weights(), trained=len(self._weight_names), finished=finished)

    @property
    def _weight_names(self) -> list[str]:
        """The names of the weights that are trained."""
        return [weight_name(name) for name in dict.fromkeys([*self._full_layers, *self._lora_layers])]

    def _full_weights(self) -> list[str]:
        """Return the trained weights that no task can change any more: S is the whole space in each branch."""
        config, names = self.config, []
        for name in self._weight_names:
            layer, full = layer_name(name), []
            if layer in self._full_layers:
                full.append(self.memory.is_full(name if config.mode == "strict" else f"{name}::core"))
            if layer in self._lora_layers:
                side = f"{name}::rank" if config.adapter_side == "rank" else name
                # Otherwise B still changes the weight: only A's gradient is projected, or A holds earlier rows.
                projected = config.projection == "both" and config.adapter == "fresh"
                full.append(projected and self.memory.is_full(side))
            if all(full):
                names.append(name)
        return names

    @override
    def state_dict(self) -> dict[str, Tensor]:
        state = super().state_dict() | self.space.state_dict()
        for part in (self._shared, self.task):
            state |= part.state_dict() if part is not None else {}
        return state

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.space.load_state_dict(state)
        if self._shared is not None:
            self._shared.load_state_dict(state)
        if self.task is not None:
            self.task.load_state_dict(state)
            self.task.watch_due_layers(self.step)
