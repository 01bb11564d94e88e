"""Protected full fine-tuning: train whole weights, but change nothing along the input directions of earlier tasks.

    before a step    G ← G (I - S Sᵀ)                           so that moments and clipping use the projected gradient
    after a step     W ← W - (W - W_begin) S Sᵀ                 exact, whatever step the optimizer took

S, n x s, grows at the end of each task from the task's inputs, as in GORP's strict mode (`gorp.protection.space`).
The change ΔW of every later task satisfies ‖ΔW S‖ <= 1e-5 ‖ΔW‖ in float32, with any optimizer. The first line alone
does not give this: Adam divides the gradient entry by entry, which turns a large part of the step back into S, and
weight decay shrinks W along S too. If S is empty, as in the first task, this is plain full fine-tuning of the chosen
layers.

Saha et al. 2021 (GPM, arXiv:2103.09762) project the gradient, Wang et al. 2021 (Adam-NSCL, arXiv:2103.07113) project
Adam's step. Here the weight itself is projected, after everything that changed it.

Cost: two products with S before a step and two after it, 8·m·n·s flops per weight, compared with 6·N·m·n for its
forward and backward pass over N tokens. Memory: S, and a copy of W from the start of the task.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from gorp.core.linalg import project_gradient, project_out_rows
from gorp.core.memory import max_directions
from gorp.errors import ConfigError
from gorp.layers.names import layer_name, weight_name
from gorp.layers.targets import left_out_line, resolve
from gorp.layers.widening import WidenedLayer, compute_dtype
from gorp.methods.base import Directions, Method, MethodConfig, TaskContext, Work
from gorp.protection.report import check_room
from gorp.protection.space import SharedSpace
from gorp.ranges import BETWEEN_TASKS, POSITIVE, WIDEST, Range
from gorp.weights.delta import WeightDelta


@dataclass(frozen=True, kw_only=True)
class ProtectedFullConfig(MethodConfig):
    """Options of protected full fine-tuning. An option that GORP has too means the same as in GORP's strict mode."""

    full_modules: tuple[str, ...] | str = "all-linear"
    """Layers whose weight is trained: "all-linear", "auto" (the preset of the model's family), or patterns."""
    budget: Annotated[float, Range(0, 1, open_low=True), BETWEEN_TASKS] = 0.75
    """Largest capacity s / n of a weight's S, in (0, 1]."""
    memory_rows: Annotated[int, Range(1, WIDEST), BETWEEN_TASKS] = 256
    """Number of rows of the task, drawn at random, whose inputs S grows from at the task's end."""
    threshold: Annotated[float, POSITIVE, BETWEEN_TASKS] = 0.6
    """τ: a direction is protected if the task's inputs have more energy along it than τ · (energy along an average
    direction) · (s / n), with s the size of S at that moment."""


@final
class ProtectedFull(Method):
    """Full fine-tuning of linear layers outside the protected subspace of each weight."""

    name = "protected_full"
    title = "full fine-tuning of linear layers, with no change along the input directions of earlier tasks"
    paper = "Wang et al. 2021, arXiv:2103.07113"
    keeps = "a basis S per weight, at most budget·n x n floats; per weight and task 16·(m + n) bytes of input summaries"
    Config = ProtectedFullConfig
    widens = True

    def __init__(self, config: ProtectedFullConfig | None = None) -> None:
        super().__init__(config)
        self.space = SharedSpace(budget=self.config.budget)
        self.memory = self.space.memory
        self._weight_names: list[str] = []  # the chosen weights
        self._task_index = 0  # of the running task, or of the last one
        # While a task runs:
        self._layers: dict[str, WidenedLayer] = {}  # the layer of each weight that can change
        self._begin_weights: dict[str, Tensor] = {}  # W_begin, m x n, of each of these weights that has an S

    @override
    def choose(self, model: nn.Module) -> list[str]:
        layers = resolve(model, self.config.full_modules, role="full")
        if not layers:
            raise ConfigError(
                "protected_full has nothing to train: method.full_modules is `none`. Set it to layer names or "
                "`all-linear`."
            )
        self._weight_names = [weight_name(layer) for layer in layers]
        return layers

    @override
    def notes(self, model: nn.Module) -> list[str]:
        return [line for line in [left_out_line(model, self.config.full_modules)] if line]

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        self._release_layers()  # if an earlier task was neither ended nor abandoned
        self.space.begin_task()
        self._task_index = task.index
        for name in self._weight_names:
            if not self.memory.is_full(name):  # a weight whose S is the whole space stays frozen
                self.weights.base(name)
                self._layers[name] = WidenedLayer(_layer(model, name))
        super().begin_task(model, task)
        for name in self._layers:
            parameter = self.weights.parameter(name).requires_grad_(True)
            if self.memory.size(name):
                # In exact arithmetic T = W_begin S, m x s, would be enough: W ← W - (W S - T) Sᵀ. But W S and T are
                # about 1000 times larger than their difference. That would leave 1e-4 of the change along S in float32
                # (with TF32 products a tenth of the change); keeping W_begin, m x n, leaves 1e-5.
                self._begin_weights[name] = parameter.detach().clone()

    @override
    def edit_gradients(self, model: nn.Module, optimizer: Optimizer) -> None:
        dtype = compute_dtype(self._layers.values())
        for name in self._begin_weights:
            gradient = self.weights.parameter(name).grad
            if gradient is not None:  # G ← G (I - S Sᵀ); rows that are only rounding error become zero
                gradient.copy_(project_gradient(gradient, self.memory.basis(name, gradient), compute_dtype=dtype))

    @override
    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().after_step(model, optimizer)
        for name, start in self._begin_weights.items():
            weight = self.weights.parameter(name).data
            basis = self.memory.basis(name, start)
            weight.addmm_((weight - start) @ basis, basis.mT, alpha=-1)  # (m, n) @ (n, s), (m, s) @ (s, n)

    @override
    def end_task(self, model: nn.Module, optimizer: Optimizer, task: TaskContext) -> None:
        for name in self._weight_names:
            if name in self._layers:
                self._add_to_delta(name)
            else:
                self.space.report.leak[name] = self.space.report.served[name] = 0.0  # frozen
        model.requires_grad_(False)
        self._release_layers()
        self.weights.load(self.deltas)
        self._protect_inputs(model, task)
        self.space.end_task()

    def _protect_inputs(self, model: nn.Module, task: TaskContext) -> None:
        rows, threshold = self.config.memory_rows, self.config.threshold
        self.space.grow(
            model, self._weight_names, task.name, task.batches, rows=rows, threshold=threshold, reading=task.reading
        )

    @override
    def check_adopt(self) -> None:
        """S grows from the inputs of rows, whoever trained on them."""

    @override
    def adopt(
        self, model: nn.Module, task: TaskContext, changes: Mapping[str, WeightDelta], directions: Directions | None
    ) -> None:
        self._task_index = task.index
        self.space.begin_task()
        self.deltas = dict(changes)
        self.weights.load(self.deltas)
        if directions is None:
            self._protect_inputs(model, task)
        else:
            self.space.protect(directions)
        self.space.end_task()

    def _add_to_delta(self, name: str) -> None:
        """Add the task's change of one weight to its delta, and report the leak of the change."""
        parameter, start = self.weights.parameter(name), self._begin_weights.pop(name, None)
        before = self.deltas.get(name, WeightDelta(parameter.shape))
        if start is None:  # no S yet
            self.deltas[name] = self.weights.difference(name)
            change = self.deltas[name].since(before)
        else:
            # Project the change once more: W is rounded relative to its own size, which matters if the change is small,
            # and an optimizer that averages weights ends at an average that no step has projected.
            basis = self.memory.basis(name, start)
            change = WeightDelta.of(project_out_rows(parameter.detach() - start, basis))
            self.deltas[name] = WeightDelta.of(before.dense() + change.to("cpu").dense())
        self._layers[name].narrow()  # the served weight has the model's dtype
        self.space.record_change(name, change, weights=self.weights, before=before, after=self.deltas[name])

    @override
    def abandon(self, model: nn.Module) -> None:
        self.space.abandon()
        self._release_layers()
        super().abandon(model)

    def _release_layers(self) -> None:
        """Convert the layers back to their own dtype, and drop what belongs to the running task."""
        for layer in self._layers.values():
            layer.narrow()
        self._layers, self._begin_weights = {}, {}

    @override
    def assume_learned(self, model: nn.Module, *, tasks: int, steps: int | None) -> None:
        super().assume_learned(model, tasks=tasks, steps=steps)
        shapes = {name: delta.shape for name, delta in self.deltas.items()}
        # Inputs may have as many directions as the budget allows; at s = n the weight would be frozen and cost nothing.
        sizes = {name: (n, min(max_directions(n, self.config.budget), n - 1)) for name, (_, n) in shapes.items()}
        self.space.assume(sizes, read=shapes, tasks=tasks)

    @override
    def resident_tensors(self) -> list[Tensor]:
        return [*self.space.bases().values(), *self._begin_weights.values()]

    @override
    def step_work(self, tokens: Callable[[str], int]) -> Iterator[Work]:
        for name, start in self._begin_weights.items():
            (m, n), s = start.shape, self.memory.size(name)
            yield Work(flops=8 * m * n * s, moved=2 * 4 * (3 * m * n + 2 * n * s))  # G and W, each times S and Sᵀ

    @override
    def memory_tensors(self) -> dict[str, Tensor]:
        return self.space.bases()

    @override
    def facts(self) -> dict[str, Any]:
        warnings = [*self.space.warnings(self.weights), *self._room_warnings(self._task_index)]
        return super().facts() | self.space.facts(self._weight_names) | {"warnings": warnings}

    @override
    def warnings(self, finished: int) -> list[str]:
        check_room(self._full_weights(), self._weight_names)
        return self._room_warnings(finished)

    def _room_warnings(self, finished: int) -> list[str]:
        return self.space.next_task_warnings(self._full_weights(), trained=len(self._weight_names), finished=finished)

    def _full_weights(self) -> Sequence[str]:
        """Return the weights that no task can change any more, because their S is the whole space."""
        return [name for name in self._weight_names if self.memory.is_full(name)]

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | self.space.state_dict()

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.space.load_state_dict(state)


def _layer(model: nn.Module, name: str) -> nn.Linear:
    return model.get_submodule(layer_name(name))  # pyright: ignore[reportReturnType]
