"""`Method`, the base class of every continual-learning method, and the order in which its hooks are called.

A method is one file in `gorp/methods`: a frozen config and a final subclass of `Method`. It overrides only the hooks
that it needs; by default nothing is trained and nothing is protected. Each task is trained by a new Hugging Face
Trainer (`gorp.training.trainer`), which calls the hooks.

Once, when the base model is loaded and nothing has changed it:

    setup               calls `choose`, which names the layers to train; raises if one of them cannot be trained
    notes               returns lines for the user about layers that were left out

For each task, in this order:

    warnings            returns what the user should know before the task; raises if the task could change nothing
    begin_task          loads the deltas of earlier tasks, adds adapters, freezes all that is not trained
    begin_training      the task's rows and the number of steps are known now: sets what depends on them
    check_optimizer     raises if the method cannot work with the optimizer that the user chose (in a dry run too)
    parameter_groups    returns what is trained, and at which learning rate
    make_optimizer      returns the method's own optimizer, or None for the one that the user chose
    In each optimizer step:
        extra_loss      in each micro-batch, after the forward pass: returns a term to add to the loss, or None
        edit_gradients  after the last micro-batch and the all-reduce over ranks, before clipping: projects or masks
        after_step      after the optimizer has moved the weights: corrects them (projection, proximal step, average)
    end_task            adds the task's change to `deltas`, removes adapters, stores what later tasks need
    facts               returns what the task's report says: leak, capacity, bytes kept

If an error or an interruption ends the task, `abandon` is called in place of `end_task`.

Between tasks:

    adopt               takes over a first task that was learned elsewhere; `check_adopt` refuses before that
    serving             gives the model that answers prompts, of a task whose name may be known
    memory_tensors      returns the bases S that are written to `memory.safetensors`

For `gorp estimate`, on a model without data:

    assume_learned      sets the state to the largest that finished tasks can leave, from shapes and options alone
    resident_tensors    returns the tensors, besides the model's, that are on the device while a task runs
    step_work           yields the arithmetic of `edit_gradients` and `after_step`

`state_dict` is called after each task, and whenever a checkpoint is written within one. `load_state_dict` restores it.

**Resuming a task.** A new object is loaded with the state that was saved before the task; `begin_task` and
`begin_training` are called as usual; then the state of the checkpoint is loaded. State consists of tensors only, so
that safetensors can hold it.

**Flags** (class attributes) declare what a method needs: `joint`, `needs_task_id`, `needs_num_tasks`, `stores_data`,
`mergeable`. A run that cannot meet them is refused before training (`gorp.training.preflight`).
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
from gorp.layers.names import weight_name
from gorp.layers.trainable import check_trainable
from gorp.ranges import check_ranges
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta, pack_deltas, unpack_deltas


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Options of a method; this base class has none."""

    def __post_init__(self) -> None:
        """Check each field: a `Literal` against its words, a number against its range.

        Raises:
            ConfigError: If a value is not allowed; the message lists the words or gives the range.
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
    """What a method is told about the task that is being trained."""

    name: str
    index: int
    """Number of the task in the sequence, from 1."""
    seed: int
    """Seed of the whole sequence, the same for every task."""
    num_steps: int
    """Optimizer steps that this task will take; not for `begin_task`, which may be called before they are known."""
    num_tasks: int | None = None
    """Number of tasks in the whole sequence, or None if it is not known. A benchmark knows it. A workspace does not,
    because tasks can be added to it; if the method sets `needs_num_tasks`, its YAML must list all tasks."""
    batches: Callable[[int, int | None], Iterator[Batch]]
    """`batches(batch_size, limit)` yields at most `limit` of the task's training rows (None: all), drawn at random
    without replacement, in batches of at most `batch_size` rows. The rows are the same on every call, on every rank and
    in a resumed run. Not for `begin_task`."""
    reading: Callable[[int, int], None] = lambda done, total: None
    """Called with the number of finished and of all passes, while a method reads rows before or after training."""


Directions = Mapping[str, tuple[Tensor, Tensor]]
"""Name of a weight -> orthonormal columns, n x p, and p energies: fractions of a squared norm."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """An operation that a method adds to an optimizer step, outside the forward pass, loss and backward pass."""

    flops: float
    """Floating-point operations; a multiply-add is two."""
    moved: float
    """Bytes read and written."""
    every: int = 1
    """Number of steps in which the operation runs once."""


class Method:
    """Base class of every method; the module docstring says when each hook is called."""

    name: ClassVar[str] = ""
    """Name of the method on the command line and in tables."""
    title: ClassVar[str] = ""
    """One line that describes the method, for `gorp methods`."""
    paper: ClassVar[str] = ""
    """Source of the method: the paper and its arXiv id."""
    keeps: ClassVar[str] = "nothing"
    """What the method carries from task to task besides the weights, and how it grows."""
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    uses_lora: ClassVar[bool] = False
    """Whether the method reads the `lora:` block of the configuration."""
    joint: ClassVar[bool] = False
    """Whether the method trains once, on the rows of all tasks together."""
    needs_num_tasks: ClassVar[bool] = False
    """Whether the method needs `TaskContext.num_tasks`."""
    needs_task_id: ClassVar[bool] = False
    """Whether the method can answer a prompt only if it is told which task the prompt belongs to."""
    stores_data: ClassVar[bool] = False
    """Whether the state holds rows of earlier tasks. If so, deleting a file of rows does not delete these copies."""
    mergeable: ClassVar[bool] = True
    """Whether `deltas` holds all that was learned, so that one plain model, W₀ + deltas, answers for every task."""
    loss_reads_batch: ClassVar[bool] = True
    """Whether `extra_loss` depends on the batch or on the model's outputs. If False, it is a function of the weights,
    and its gradient can be added in a training loop whose loss gorp does not compute."""
    widens: ClassVar[bool] = False
    """Whether the model's own weights are trained, in float32 whatever their dtype is between tasks. The forward pass
    of a bfloat16 model then runs under autocast."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check that the flags do not contradict each other.

        A merged model and a joint method have one set of weights for all tasks, so a task's name cannot matter.

        Raises:
            TypeError: If `needs_task_id` is set together with `mergeable` or `joint`.
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
        """Name of a weight -> the sum of the changes that all finished tasks made to it."""
        self.step: int = 0
        """Optimizer steps finished in this task."""
        self.broken = ""
        """Why this object cannot train any more: an error in `end_task` left its state half changed. Empty if all is
        well; `load_state_dict` clears it."""
        self._step_at_start = 0

    def setup(self, model: nn.Module) -> None:
        """Choose the weights to train and check them. Called once, before anything in `model` is changed.

        Raises:
            ModelError: If a chosen weight cannot be trained (`gorp.layers.trainable`).
            ConfigError: If an option does not fit the chosen weights.
        """
        self.weights: BaseWeights = BaseWeights(model)
        check_trainable(model, self.choose(model))

    def choose(self, model: nn.Module) -> list[str] | None:
        """Return the names of the linear layers to train, or None (the default) if any parameter may be trained."""
        return None

    def notes(self, model: nn.Module) -> list[str]:
        """Return lines that tell the user which layers `choose` left out; `model` as in `setup`."""
        return []

    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        """Prepare the model for training: add layers, and choose which parameters are trained.

        It is called before the optimizer exists, so the task's rows and its number of steps may not be known yet.
        Default: load all finished tasks' deltas into the weights and make no parameter trainable.

        Raises:
            TrainingError: If the model or the method is not as the previous task left it: an earlier task ended in an
                error and was not abandoned.
        """
        self._step_at_start = self.step
        if self.broken:
            raise TrainingError(
                f"this {self.name} object cannot train another task: {self.broken}. Load a saved state into it "
                "(load_state_dict), or make a new object."
            )
        if not self.weights.is_plain(model):
            raise TrainingError(
                "the model is not as `setup` found it: layers of an earlier task, which did not finish, are still "
                "in it. Call `method.abandon(model)` first, or load the model again and call `method.setup(model)`."
            )
        self.step = 0
        self.weights.load(self.deltas)
        model.requires_grad_(False)

    def begin_training(self, model: nn.Module, task: TaskContext) -> None:
        """Set what depends on the task's rows or on its number of steps; the trained parameters stay the same objects.

        Args:
            model: The model as `begin_task` left it; it may be wrapped for data parallelism.
            task: The same task, now with its rows and its number of steps.
        """

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """Return optimizer groups. A group without its own `lr` gets `learning_rate`.

        Default: one group of all trainable parameters.
        """
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]

    def make_optimizer(self, groups: list[dict[str, Any]], options: Mapping[str, Any]) -> torch.optim.Optimizer | None:
        """Return the method's own optimizer, or None (the default) to use the one that `training.optim` names.

        For a method that overrides this, a configuration that sets `training.optim` is refused. Checkpoints hold the
        optimizer's `state_dict()`, so a run resumes bit for bit if that state is complete and consists of plain
        tensors.

        Args:
            groups: What `parameter_groups` returned.
            options: The options that AdamW would be created with: `lr`, `weight_decay`, `betas`, `eps`.
        """
        return None

    def extra_loss(self, model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor | None:
        """Return a scalar to add to the task's mean loss, or None.

        The term counts once in a step, however many micro-batches the step has. Return a term that does not depend on
        the batch as it is. Pass the values of a sum over tokens to `outputs.mean`, so that this term too does not
        depend on how the step is split into micro-batches.

        Args:
            model: In training mode.
            batch: The micro-batch, with labels.
            outputs: The forward pass of `batch`: K x V logits at its K labels. It can run more forward passes.
        """
        return None

    def check_optimizer(self, optimizer: type, options: Mapping[str, Any]) -> None:
        """Raise if the method cannot work with an optimizer class and the options that it would be created with.

        Raises:
            ConfigError: Before training, and in a dry run.
        """

    def edit_gradients(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Change the gradients, `.grad` of each parameter, in place."""

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Correct the weights after an optimizer step. Overrides call this method first, because it counts the steps.

        Args:
            model: The model after the step; the gradients of the step are still there.
            optimizer: The optimizer that took the step; `lr` of each group is the learning rate of this step.
        """
        self.step += 1

    def end_task(self, model: nn.Module, optimizer: torch.optim.Optimizer, task: TaskContext) -> None:
        """Add the task's change to `deltas`, remove adapters, and store what later tasks need."""

    def abandon(self, model: nn.Module) -> None:
        """Restore the model and the method as they were before `begin_task`; nothing of the task is kept.

        Called in place of `end_task` after any error, including one in `begin_task` or in `end_task` itself. Default:
        load the earlier tasks' deltas into the weights and make no parameter trainable. Overrides remove what they
        added to the model, drop what they hold for the running task, and call this method last.
        """
        model.zero_grad(set_to_none=True)
        self.step = self._step_at_start
        self.weights.load(self.deltas)
        model.requires_grad_(False)

    def check_adopt(self) -> None:
        """Raise if the method cannot take over a task that was learned without it.

        Default: it cannot. Of such a task only the change of the weights and some rows are left, and most methods need
        what exists while a task trains, or protect nothing.

        Raises:
            ConfigError: The message names the method, or its option.
        """
        raise ConfigError(
            f"the method `{self.name}` cannot protect a task that was learned without it: it protects nothing, or "
            'needs what is known only while a task trains. Use method="gorp" or method="protected_full".'
        )

    def adopt(
        self, model: nn.Module, task: TaskContext, changes: Mapping[str, WeightDelta], directions: Directions | None
    ) -> None:
        """Take over a first task that was learned elsewhere: its change goes into `deltas`, and it is protected.

        Called between tasks, after `setup` and `check_adopt`. Afterwards the model has the task in its weights.

        Args:
            model: The base model.
            task: The task; its rows are read if `directions` is None.
            changes: Name of a parameter, of any layer -> what the task added to it, in main memory.
            directions: What to protect if there are no rows: name of a weight -> orthonormal columns, n x p, and the
                energy of each. None: what the method would protect at the end of a task.
        """
        raise NotImplementedError

    @contextmanager
    def serving(self, model: nn.Module, task: str | None = None) -> Iterator[nn.Module]:
        """Yield the model that answers prompts between tasks, with the served weights round(W₀ + delta).

        Overrides add what is not in `deltas`, inside `with super().serving(model, task)`, and remove it at the end.

        Args:
            model: The base model.
            task: Name of the task that the prompts belong to, learned or not; None if it is not known.

        Raises:
            ConfigError: If the method `needs_task_id` and `task` is None.
        """
        if self.needs_task_id and task is None:
            raise ConfigError(
                f"the method `{self.name}` needs to be told which task a prompt belongs to. Give the task's name, or "
                "use a method that does not need it (`gorp methods` lists them)."
            )
        self.weights.load(self.deltas)
        yield model

    def assume_learned(self, model: nn.Module, *, tasks: int, steps: int | None) -> None:
        """Set the state to the largest that `tasks` finished tasks can leave, as tensors on the meta device.

        `gorp estimate` calls it after `setup`, computes the bytes kept between tasks from `state_dict`, and begins a
        task from that state. Default: a dense delta of each weight that `choose` names. Overrides fill whatever else
        is in `state_dict`.

        Args:
            model: The base model, on the meta device.
            tasks: Number of finished tasks, at least 1.
            steps: Optimizer steps of each task; None if they are not known.

        Raises:
            ConfigError: If the size of the state depends on more than shapes and options.
        """
        layers = self.choose(model)
        names = map(weight_name, layers) if layers is not None else [name for name, _ in model.named_parameters()]
        self.deltas = {name: WeightDelta.without_data(model.get_parameter(name).shape) for name in names}

    def resident_tensors(self) -> list[Tensor]:
        """Return the tensors, besides the model's, that the method holds on the device while a task runs."""
        return []

    def step_work(self, tokens: Callable[[str], int]) -> Iterator[Work]:
        """Yield what `edit_gradients` and `after_step` compute in a step of the running task.

        Args:
            tokens: Called with the name of a weight; returns N, the number of tokens of its layer's inputs in one
                optimizer step.
        """
        yield from ()

    def memory_tensors(self) -> dict[str, Tensor]:
        """Return the contents of `memory.safetensors`: S of each protected weight, n x s, float32.

        `state_dict` holds the same tensors under `memory/…`.
        """
        return {}

    def warnings(self, finished: int) -> list[str]:
        """Return sentences for the user that matter before the next task is trained.

        Args:
            finished: Number of tasks learned so far.

        Raises:
            ConfigError: If another task could not change any weight.
        """
        return []

    def facts(self) -> dict[str, Any]:
        """Return what a run reports besides its scores, as JSON values: leak, capacity, bytes kept."""
        return {"footprint_bytes": footprint(self.state_dict())}

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that is carried from task to task, and what a running task needs to resume, as named tensors."""
        return {"step": torch.tensor(self.step), **prefixed("delta", pack_deltas(self.deltas))}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Overrides call this method first."""
        self.broken = ""
        self.step = int(state["step"])
        self.deltas = unpack_deltas(without_prefix("delta", state))
