"""Protected full fine-tuning: dense training of whole weights, and no change along the inputs of earlier tasks.

    before a step    G ← G (I - S Sᵀ)                           so that moments and clipping see what will count
    after it         W ← W - (W - W_begin) S Sᵀ                 whatever the optimizer made of it

S, n x s, is grown at the end of each task from its inputs, as in GORP's strict mode (`gorp.protection.space`), and so
‖ΔW S‖ <= 1e-5 ‖ΔW‖ in float32 for the change ΔW of any later task, under any optimizer. The first line alone would
not do: Adam divides the gradient entry by entry, which leads a good part of the step back into S, and decay shrinks
W along S as well. Where S is empty, as in the first task, this is plain full fine-tuning of the chosen layers.

Gradients outside the span of earlier inputs are those of Saha et al. 2021 (GPM, arXiv:2103.09762), Adam's step outside
it that of Wang et al. 2021 (Adam-NSCL, arXiv:2103.07113); here it is the weight that is projected, after everything
that moved it.

Cost: two products with S before a step and two after it, 8·m·n·s flops a weight, beside 6·N·m·n of its forward and
backward pass over N tokens; in memory S, and W as it was at the task's start.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from gorp.core.linalg import project_gradient, project_out_rows
from gorp.core.memory import room
from gorp.errors import ConfigError
from gorp.layers.names import layer_name, weight_name
from gorp.layers.targets import left_out_line, resolve
from gorp.layers.widening import WidenedLayer, made_in
from gorp.methods.base import Method, MethodConfig, TaskContext, Work
from gorp.protection.report import check_room
from gorp.protection.space import SharedSpace
from gorp.ranges import BETWEEN_TASKS, POSITIVE, WIDEST, Range
from gorp.weights.delta import WeightDelta


@dataclass(frozen=True, kw_only=True)
class ProtectedFullConfig(MethodConfig):
    """Options of protected full fine-tuning; those of one name mean what they mean in GORP's strict mode."""

    full_modules: tuple[str, ...] | str = "all-linear"
    """Layers whose weight is trained: "all-linear", "auto" (the preset of the model's family), or patterns."""
    budget: Annotated[float, Range(0, 1, open_low=True), BETWEEN_TASKS] = 0.75
    """Largest share of a weight's inputs that may be protected, in (0, 1]."""
    memory_rows: Annotated[int, Range(1, WIDEST), BETWEEN_TASKS] = 256
    """Rows of a task that its inputs are read from at its end, drawn at random."""
    threshold: Annotated[float, POSITIVE, BETWEEN_TASKS] = 0.6
    """τ: a direction is protected if the task's inputs have more along it than τ times what they have along an average
    direction, times the share of the directions that is protected by then."""


@final
class ProtectedFull(Method):
    """Full fine-tuning of linear layers, S of each protected."""

    name = "protected_full"
    title = "full fine-tuning outside the directions of earlier tasks' inputs"
    paper = "Wang et al. 2021, arXiv:2103.07113"
    keeps = "a basis S per weight, at most budget·n x n floats; per weight and task 16·(m + n) bytes of readings"
    Config = ProtectedFullConfig
    widens = True

    def __init__(self, config: ProtectedFullConfig | None = None) -> None:
        super().__init__(config)
        self.space = SharedSpace(budget=self.config.budget)
        self.memory = self.space.memory
        self._names: list[str] = []  # of the chosen weights
        self._task = 0  # index of the task at hand, or of the last one
        # While a task runs:
        self._layers: dict[str, WidenedLayer] = {}  # of the weights that can change
        self._starts: dict[str, Tensor] = {}  # W_begin of those among them that have an S

    @override
    def choose(self, model: nn.Module) -> list[str]:
        layers = resolve(model, self.config.full_modules, role="full")
        if not layers:
            raise ConfigError(
                "protected_full has nothing to train: method.full_modules is `none`. Name layers, or take `all-linear`."
            )
        self._names = [weight_name(layer) for layer in layers]
        return layers

    @override
    def notes(self, model: nn.Module) -> list[str]:
        return [line for line in [left_out_line(model, self.config.full_modules)] if line]

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        self._let_go()  # of a task that was neither ended nor abandoned
        self.space.begin_task()
        self._task = task.index
        for name in self._names:
            if not self.memory.is_full(name):  # nothing is orthogonal to the whole space: such a weight is frozen
                self.weights.base(name)
                self._layers[name] = WidenedLayer(_layer(model, name))
        super().begin_task(model, task)
        for name in self._layers:
            parameter = self.weights.parameter(name).requires_grad_(True)
            if self.memory.size(name):
                # All of W_begin, m x n, and not T = W_begin S, m x s, which would do in exact arithmetic:
                # W ← W - (W S - T) Sᵀ. W S and T are a thousand times what they differ by: in float32 that leaves 1e-4
                # of the change along S where this leaves 1e-5, and with TF32 products a tenth of it.
                self._starts[name] = parameter.detach().clone()

    @override
    def edit_gradients(self, model: nn.Module, optimizer: Optimizer) -> None:
        dtype = made_in(self._layers.values())
        for name in self._starts:
            gradient = self.weights.parameter(name).grad
            if gradient is not None:  # G ← G (I - S Sᵀ), without the rows of which that leaves rounding
                gradient.copy_(project_gradient(gradient, self.memory.basis(name, gradient), made_in=dtype))

    @override
    def after_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().after_step(model, optimizer)
        for name, start in self._starts.items():
            weight = self.weights.parameter(name).data
            basis = self.memory.basis(name, start)
            weight.addmm_((weight - start) @ basis, basis.mT, alpha=-1)  # (m, n) @ (n, s), (m, s) @ (s, n)

    @override
    def end_task(self, model: nn.Module, optimizer: Optimizer, task: TaskContext) -> None:
        for name in self._names:
            if name in self._layers:
                self._take_in(name)
            else:
                self.space.report.leak[name] = self.space.report.served[name] = 0.0  # frozen
        model.requires_grad_(False)
        self._let_go()
        self.weights.load(self.deltas)
        rows, threshold = self.config.memory_rows, self.config.threshold
        self.space.grow(model, self._names, task.name, task.batches, rows=rows, threshold=threshold)
        self.space.end_task()

    def _take_in(self, name: str) -> None:
        """Add the change of one weight to its delta, and measure what it does."""
        parameter, start = self.weights.parameter(name), self._starts.pop(name, None)
        before = self.deltas.get(name, WeightDelta(parameter.shape))
        if start is None:  # no S yet
            self.deltas[name] = self.weights.difference(name)
            change = self.deltas[name].since(before)
        else:
            # Once more, and of the change itself: W is rounded at its own size, which is the larger share of a change
            # the smaller that is; and an optimizer may end at an average that no step has projected.
            basis = self.memory.basis(name, start)
            change = WeightDelta.of(project_out_rows(parameter.detach() - start, basis))
            self.deltas[name] = WeightDelta.of(before.dense() + change.to("cpu").dense())
        self._layers[name].narrow()  # what is served has the model's dtype
        self.space.changed(name, change, weights=self.weights, before=before, after=self.deltas[name])

    @override
    def abandon(self, model: nn.Module) -> None:
        self.space.abandon()
        self._let_go()
        super().abandon(model)

    def _let_go(self) -> None:
        """Give the layers their dtype again, and drop all that belongs to the running task."""
        for layer in self._layers.values():
            layer.narrow()
        self._layers, self._starts = {}, {}

    @override
    def assume_learned(self, model: nn.Module, *, tasks: int, steps: int | None) -> None:
        super().assume_learned(model, tasks=tasks, steps=steps)
        shapes = {name: delta.shape for name, delta in self.deltas.items()}
        # Inputs may have as many directions as the budget allows; at s = n the weight would be frozen and cost nothing.
        sizes = {name: (n, min(room(n, self.config.budget), n - 1)) for name, (_, n) in shapes.items()}
        self.space.assume(sizes, read=shapes, tasks=tasks)

    @override
    def resident_tensors(self) -> list[Tensor]:
        return [*self.space.bases().values(), *self._starts.values()]

    @override
    def step_work(self, tokens: Callable[[str], int]) -> Iterator[Work]:
        for name, start in self._starts.items():
            (m, n), s = start.shape, self.memory.size(name)
            yield Work(flops=8 * m * n * s, moved=2 * 4 * (3 * m * n + 2 * n * s))  # G and W, each times S and Sᵀ

    @override
    def memory_tensors(self) -> dict[str, Tensor]:
        return self.space.bases()

    @override
    def facts(self) -> dict[str, Any]:
        done = self.space.warnings(self.weights)
        warnings = [*done, *self._outlook(self._task)]
        return super().facts() | self.space.facts(self._names) | {"warnings": warnings}

    @override
    def warnings(self, finished: int) -> list[str]:
        check_room(self._stuck(), self._names)
        return self._outlook(finished)

    def _outlook(self, finished: int) -> list[str]:
        return self.space.outlook(self._stuck(), trained=len(self._names), finished=finished)

    def _stuck(self) -> Sequence[str]:
        return [name for name in self._names if self.memory.is_full(name)]

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | self.space.state_dict()

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.space.load_state_dict(state)


def _layer(model: nn.Module, name: str) -> nn.Linear:
    return model.get_submodule(layer_name(name))  # pyright: ignore[reportReturnType]
