"""What a continual-learning method may decide, in the order it is asked.

A method is one file in `gorp/methods`: a frozen config and a final subclass of `Method`. Override only what the
method changes; the defaults train nothing and protect nothing. The engine is Hugging Face's Trainer, a new one for
every task, and calls the seams from there (`gorp.training.trainer`).

    setup           once, with the pristine base model: `choose` the weights, refuse what cannot work
    begin_task      make the weights, add adapters, freeze, take snapshots; may build structure, must not train
    parameter_groups  what is trained, and at which learning rate
    check_optimizer refuse one that the method cannot work with: before training, and in a dry run
    make_optimizer  an optimizer of its own, in place of the one that the Trainer's arguments name
    extra_loss      penalties, replay, distillation: a term that weighs the same however the batch is cut
    edit_gradients  projections and masks: after the last micro-batch and the all-reduce, before clipping
    after_step      correct the weights once they have moved: strict projection, proximal step, moving average
    end_task        remember what must not be forgotten; fold what was learned into `deltas`
    abandon         instead of end_task, after an error or an interruption: model and method as before begin_task
    serving         the model as it answers questions, of a task whose name may be known
    state_dict, load_state_dict   everything carried from task to task, and what a resumed task needs

**Rule for resuming.** On resume the method is loaded as it was when the task began, `begin_task` is called again, and
only then the state of the checkpoint is loaded. State is tensors, so that it fits into safetensors.

**Flags** say what a method asks of its surroundings: `joint`, `needs_task_id`, `needs_num_tasks`, `stores_data`,
`mergeable`. What cannot be given is refused before training, with the method's name (`gorp.training.preflight`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from gorp.core.outputs import Batch, Outputs
from gorp.core.state import footprint, prefixed, without_prefix
from gorp.errors import ConfigError, TrainingError, nearest
from gorp.layers.trainable import check_trainable
from gorp.ranges import check_ranges
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta, pack_deltas, unpack_deltas


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A method without options."""

    def __post_init__(self) -> None:
        """Refuse a word that its field does not know, and a number outside its field's range.

        Raises:
            ConfigError: With the words there are, or the range.
        """
        for name, hint in get_type_hints(type(self)).items():
            words = [w for part in (hint, *get_args(hint)) if get_origin(part) is Literal for w in get_args(part)]
            value = getattr(self, name)
            if words and value is not None and value not in words:
                raise ConfigError(
                    f"method.{name} is `{value}`; it must be one of {', '.join(words)}.{nearest(str(value), words)}"
                )
        check_ranges(self, "method.")


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """What a method may know of the task at hand."""

    name: str
    index: int
    """Counted from 1."""
    seed: int
    num_steps: int
    """Optimizer steps this task will take."""
    num_tasks: int | None = None
    """Tasks of the whole sequence; None where nobody knows how many will come. A benchmark knows; a workspace does not,
    since tasks are added to it, unless the method `needs_num_tasks`: then its YAML lists all that there will be."""
    batches: Callable[[int, int | None], Iterator[Batch]]
    """`batches(batch_size, limit)`: at most `limit` of the task's training rows, drawn at random without replacement,
    the same ones on every call, on every rank and in a resumed run."""


class Method:
    """The base of every method; see the module for when each seam is called."""

    name: ClassVar[str] = ""
    """What the command line and the tables call it."""
    title: ClassVar[str] = ""
    """One line for `gorp methods`."""
    paper: ClassVar[str] = ""
    """Where it comes from."""
    keeps: ClassVar[str] = "nothing"
    """What it carries between tasks besides the weights, and how that grows."""
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    uses_lora: ClassVar[bool] = False
    """Whether the `lora:` block of a configuration means anything to it."""
    joint: ClassVar[bool] = False
    """Whether it trains once on the union of all tasks."""
    needs_num_tasks: ClassVar[bool] = False
    """Whether `TaskContext.num_tasks` must be known."""
    needs_task_id: ClassVar[bool] = False
    """Whether it can answer only when it is told which task a question belongs to."""
    stores_data: ClassVar[bool] = False
    """Whether its state holds rows of earlier tasks, so that deleting a file of rows does not delete them."""
    mergeable: ClassVar[bool] = True
    """Whether all that it has learned is in `deltas`: then one plain model, W₀ + deltas, answers for all tasks."""
    widens: ClassVar[bool] = False
    """Whether it trains the model's own weights in float32, whatever their dtype between tasks. The forward pass of a
    bfloat16 model then runs under autocast."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse flags that contradict each other: one plain model is told no task.

        Raises:
            TypeError: With the class's name.
        """
        super().__init_subclass__(**kwargs)
        if cls.needs_task_id and (cls.mergeable or cls.joint):
            raise TypeError(f"{cls.__name__}: needs_task_id goes with mergeable = False and without joint")

    @classmethod
    def requirements(cls) -> list[str]:
        """Return what the method requires of its user, in words: the flags that differ from most methods'."""
        words = {
            "the rows of all tasks at once": cls.joint,
            "that rows of earlier tasks may be stored": cls.stores_data,
            "the number of tasks": cls.needs_num_tasks,
            "the task that a question belongs to": cls.needs_task_id,
            "more than one plain model to serve": not cls.mergeable,
        }
        return [word for word, is_so in words.items() if is_so]

    def __init__(self, config: MethodConfig | None = None) -> None:
        self.config: Any = config or self.Config()
        self.deltas: dict[str, WeightDelta] = {}
        """What all finished tasks added to each touched weight."""
        self.step: int = 0
        """Optimizer steps finished in this task."""
        self.broken = ""
        """Why this object can train no more: an error came while its state was changing. Loading a state mends it."""
        self._step_before = 0

    def setup(self, model: nn.Module) -> None:
        """Get to know the base model, once, before anything is changed.

        Raises:
            ModelError: If a weight that the method would change cannot be trained (`gorp.layers.trainable`).
            ConfigError: If an option does not fit the weights.
        """
        self.weights: BaseWeights = BaseWeights(model)
        check_trainable(model, self.choose(model))

    def choose(self, model: nn.Module) -> list[str] | None:
        """Names of the linear layers whose weights it will change; None, the default: any parameter."""
        return None

    def notes(self, model: nn.Module) -> list[str]:
        """Lines for the user about what `choose` did not choose; `model` as in `setup`."""
        return []

    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        """Prepare the model. Default: all tasks' deltas in the weights, nothing trainable.

        Raises:
            TrainingError: If the model or the method is not as the previous task left it: an earlier task ended in an
                error and was not abandoned.
        """
        self._step_before = self.step
        if self.broken:
            raise TrainingError(
                f"this {self.name} cannot train another task: {self.broken}. Load a state into it "
                "(load_state_dict), or make a new one."
            )
        if not self.weights.is_plain(model):
            raise TrainingError(
                "the model is not as `setup` found it: layers of an earlier task that did not come to its end are "
                "still in it. Call `method.abandon(model)` first, or load the model anew and `method.setup(model)`."
            )
        self.step = 0
        self.weights.load(self.deltas)
        model.requires_grad_(False)

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """Optimizer groups; a group without its own `lr` gets `learning_rate`. Default: all that is trainable."""
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]

    def make_optimizer(self, groups: list[dict[str, Any]], options: Mapping[str, Any]) -> torch.optim.Optimizer | None:
        """An optimizer of the method's own; None, the default: the one that `training.optim` names.

        A method that overrides this refuses `training.optim`. Its optimizer is saved with a checkpoint by
        `state_dict()`, so that a run resumes bit for bit if the state is complete and of plain tensors.

        Args:
            groups: Those of `parameter_groups`.
            options: What AdamW would be made with: `lr`, `weight_decay`, `betas`, `eps`.
        """
        return None

    def extra_loss(self, model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor | None:
        """A scalar to add to the task's mean loss, or None. Weighed once a step, whatever the accumulation.

        A term that does not depend on the batch is returned as it is. One that is a sum over tokens goes through
        `outputs.mean`, so that it too is the same however the step is cut.

        Args:
            model: In training mode.
            batch: The micro-batch, with labels.
            outputs: What the model made of it, K x V logits at the K labels, and the way to more forward passes.
        """
        return None

    def check_optimizer(self, optimizer: type, options: Mapping[str, Any]) -> None:
        """Refuse an optimizer class, with the options it would be made with, that the method cannot work with.

        Raises:
            ConfigError: Before training, and in a dry run.
        """

    def edit_gradients(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Change `.grad` in place."""

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Correct the weights. Overrides call this one first: it counts the steps.

        Args:
            model: Its weights have moved; gradients are still there.
            optimizer: That moved them; the rate of the step is `lr` of each group.
        """
        self.step += 1

    def end_task(self, model: nn.Module, optimizer: torch.optim.Optimizer, task: TaskContext) -> None:
        """Fold what was learned into `deltas`, remove adapters, grow what protects."""

    def abandon(self, model: nn.Module) -> None:
        """Put the model and the method back as they were before `begin_task`; nothing of the task is kept.

        Called instead of `end_task`, whatever the error was, also one in `begin_task` or in `end_task` itself. Default:
        all earlier tasks' deltas in the weights, nothing trainable. Overrides take out what they put into the model,
        drop what they hold for a task that runs, and call this one last.
        """
        model.zero_grad(set_to_none=True)
        self.step = self._step_before
        self.weights.load(self.deltas)
        model.requires_grad_(False)

    @contextmanager
    def serving(self, model: nn.Module, task: str | None = None) -> Iterator[nn.Module]:
        """The model that answers questions between two tasks: round(W₀ + delta).

        Overrides add what is not in `deltas`, inside `with super().serving(model, task)`, and take it out at the end.

        Args:
            model: The base model.
            task: The name of the task that the questions belong to, learned or not; None where nobody knows.

        Raises:
            ConfigError: If it `needs_task_id` and gets none.
        """
        if self.needs_task_id and task is None:
            raise ConfigError(
                f"the method `{self.name}` needs to be told which task a question belongs to. Name the task, or use a "
                "method that does not (`gorp methods`)."
            )
        self.weights.load(self.deltas)
        yield model

    def memory_tensors(self) -> dict[str, Tensor]:
        """The contents of `memory.safetensors`: per protected weight S, float32, n x s; `memory/…` in `state_dict`."""
        return {}

    def warnings(self, finished: int) -> list[str]:
        """What a user should know before the next task is trained, in sentences.

        Args:
            finished: Tasks learned so far.

        Raises:
            ConfigError: If another task could change nothing.
        """
        return []

    def facts(self) -> dict[str, Any]:
        """What a run reports beside its scores, in JSON: leak, capacity, and what is kept."""
        return {"footprint_bytes": footprint(self.state_dict())}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything carried from task to task, as flat tensors."""
        return {"step": torch.tensor(self.step), **prefixed("delta", pack_deltas(self.deltas))}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`. Overrides call this one first."""
        self.broken = ""
        self.step = int(state["step"])
        self.deltas = unpack_deltas(without_prefix("delta", state))
