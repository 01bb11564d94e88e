"""The five calls with which any training loop trains a protected task; Hugging Face's Trainers make them by a callback.

    protection.begin(model, rows=loader, num_steps=n)   adds what the method trains, loads what earlier tasks changed
    protection.parameters(lr)                           groups for the optimizer
    protection.before_step(optimizer)                   after the backward pass, before clipping
    protection.after_step(optimizer)                    after `optimizer.step()`
    protection.end(optimizer)                           adds the change to the deltas, protects the task

`save` then writes a new version. A loop over several ranks averages the gradients before `before_step`; every rank
makes every call.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from gorp.attach.checks import check_finite, check_method
from gorp.attach.folder import Base, ProtectionFolder
from gorp.attach.pairs import GivenPairs, base_model, given_pairs, leave_as_trained, put_back, take_out
from gorp.attach.rows import row_batches
from gorp.attach.terminal import ReadingBar, remind_at_exit, saved_lines
from gorp.core.distributed import rank, sum_over_ranks
from gorp.core.outputs import Batch
from gorp.errors import CheckpointError, ConfigError, TrainingError, nearest
from gorp.layers.lora import LoraSettings
from gorp.methods import METHODS, build_method
from gorp.methods.base import Method, TaskContext
from gorp.training.found import SavedModelState
from gorp.weights.base import BaseWeights
from gorp.workspace.version import Version


_known: WeakKeyDictionary[nn.Module, BaseWeights] = WeakKeyDictionary()
"""Base weights of the models that this process has trained a task on, so that the same object can train the next."""

Evaluate = Callable[[nn.Module], Mapping[str, float]]
"""Scores of earlier tasks, by name, of the model as it is now."""


class ProtectedTask:
    """One task of a protection folder; see `Protection`, which documents the arguments."""

    def __init__(
        self,
        folder: str | Path,
        *,
        task: str | None = None,
        method: str | None = None,
        lora: LoraSettings | None = None,
        evaluate: Evaluate | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.folder = ProtectionFolder(Path(folder))
        current = self.folder.current
        recorded = current.record["config"]["method"]["name"] if current else None
        name = method or recorded or "gorp"
        if name not in METHODS:
            raise ConfigError(f"method is `{name}`; there are {', '.join(METHODS)}.{nearest(name, METHODS)}")
        check_method(METHODS[name])
        self.task = task or f"task-{len(self.folder.learned) + 1}"
        self.folder.check_name(self.task)
        self.index = len(self.folder.learned) + 1
        self.seed, self.evaluate = seed, evaluate
        self.scores: dict[str, float] = {}
        """What `evaluate` returned last."""
        self._name, self._lora = name, lora
        self._config = METHODS[name].Config(**self.folder.options(METHODS[name], options))
        if lora is not None and not METHODS[name].uses_lora:
            raise ConfigError(f"lora is given, but the method `{name}` trains no LoRA pairs. Leave it out.")
        self.method: Method | None = None
        """The method, from `begin` on."""
        self.stage = "new"
        """`new`, `begun`, `training`, `ended`, `saved`, or `failed`."""
        self._steps = 0
        self._origin: dict[str, Any] = {}
        """What the version records of a task that was learned elsewhere (`gorp.attach.start`)."""
        self.shows_progress = True
        """Whether a bar shows the reading of rows before and after training; not with a Trainer's `disable_tqdm`."""

    # ---- The five calls

    def begin(self, model: nn.Module, *, rows: DataLoader[Any], num_steps: int) -> None:
        """Add the task's layers to the model, and load what the earlier tasks changed into its weights.

        Make the optimizer afterwards, from `parameters`.

        Args:
            model: The base model of the folder, on its device: plain, or wrapped with a new LoRA adapter of PEFT.
            rows: A data loader over the training rows whose batches are keyword arguments of the model, with `labels`.
            num_steps: Optimizer steps that the task will take.

        Raises:
            GorpError: If the model is another than the folder's, its layers cannot be trained, or the rows cannot be
                read. The model is as before.
        """
        self._attach(model, self._own_seed)
        with self._undone_on_error():
            self._start(num_steps, self._batches_of(rows, model))

    def parameters(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the groups for an optimizer; the learning rate of some differs from `learning_rate`."""
        self._check_stage("training", "parameters")
        assert self.method is not None
        groups = self.method.parameter_groups(self._base_model, learning_rate)
        return [{"lr": learning_rate, **group} for group in groups]

    def before_step(self, optimizer: Optimizer) -> None:
        """Project the gradients. Call it after the last micro-batch of a step, before clipping."""
        self._check_stage("training", "before_step")
        assert self.method is not None
        if type(self.method).extra_loss is not Method.extra_loss:
            self._add_penalty()
        self.method.edit_gradients(self._base_model, optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        """Correct the weights. Call it after `optimizer.step()`, before the gradients are set to zero."""
        self._check_stage("training", "after_step")
        assert self.method is not None
        with torch.no_grad():
            self.method.after_step(self._base_model, optimizer)
        self._steps += 1

    def end(self, optimizer: Optimizer) -> None:
        """End the task: its change becomes part of the deltas, and its inputs become protected.

        Afterwards a model that came plain is plain again, with all tasks in its weights. A model that came with the
        user's adapter still has it, as trained.

        Raises:
            TrainingError: If a weight is not finite. The model is then as before the task.
        """
        self._check_stage("training", "end")
        assert self.method is not None
        with self._undone_on_error():
            if callable(to_averages := getattr(optimizer, "eval", None)):
                to_averages()  # a schedule-free optimizer trains one set of weights; what it learned is their average
            check_finite(self._base_model, self._steps)
            with self._as_found():
                try:
                    self.method.end_task(self._base_model, optimizer, self._context)
                except BaseException:
                    self.method.broken = f"an error occurred at the end of task `{self.task}`"
                    raise
        if self._given is not None:
            leave_as_trained(self._base_model, self._given, self.method.weights, self.method.deltas)
        _known[self._base_model] = self.method.weights
        self.stage = "ended"
        remind_at_exit(self, _not_saved)
        self._score()

    def save(self) -> Version:
        """Write the task as a new version of the folder, atomically, and return it.

        With several ranks every rank calls it, and the first one writes.

        Raises:
            TrainingError: If the task has not ended: training did not finish.
            CheckpointError: If the disk cannot be written, or another process has saved a version in the meantime. What
                was learned is still in memory: `save` may be called again.
        """
        if self.stage == "saved":
            raise TrainingError(
                f"task `{self.task}` is saved already, as {self.folder.lineage[-1].name}. The next task begins with a "
                f"new object: Protection({str(self.folder.store.root)!r})."
            )
        if self.stage in ("new", "begun"):
            raise TrainingError(
                f"task `{self.task}` cannot be saved, because its training has not finished: it has not begun. Call "
                "trainer.train() first."
            )
        if self.stage != "ended":
            raise TrainingError(
                f"task `{self.task}` cannot be saved, because its training has not finished: {self._so_far()}. To go "
                "on with it, make the same Protection, model and Trainer again and call "
                "trainer.train(resume_from_checkpoint=True)."
            )
        failed: BaseException | None = None
        if rank() == 0:
            try:
                self._write()
            except BaseException as error:  # the other ranks must hear of it before it is raised
                failed = error
        count = sum_over_ranks(torch.tensor(float(failed is not None), device=_device(self._base_model)))
        if failed is not None:
            raise failed
        if count.item():
            raise CheckpointError(f"task `{self.task}` was not saved: the first rank has the reason.")
        if rank() != 0:
            self.folder = ProtectionFolder(self.folder.store.root)
        self.stage = "saved"
        version = self.folder.lineage[-1]
        if self.shows_progress and rank() == 0:
            for line in saved_lines(version, self.task, has_adapter=self._given is not None):
                print(f"gorp: {line}")
        return version

    def _write(self) -> None:
        """Write the version; on the first rank."""
        assert self.method is not None
        self.folder.save(
            self.method,
            task=self.task,
            base=self._base,
            lora=getattr(self.method, "lora", None),
            layers=self._layers,
            seed=self.seed,
            training={"steps": self._steps, **self._origin},
            scores=self.scores,
        )

    def abandon(self) -> None:
        """Give the task up: the model and the folder are as before `begin`.

        Raises:
            TrainingError: If the task has ended.
        """
        if self.stage in ("ended", "saved"):
            raise TrainingError(f"task `{self.task}` has ended and cannot be given up. Load the base model again.")
        if self.method is not None and self.stage in ("begun", "training"):
            self.method.abandon(self._base_model)
        if self.method is not None and self.stage in ("new", "begun", "training"):
            self._put_back()
        self.stage = "failed"

    def facts(self) -> dict[str, Any]:
        """Return what the method reports on the task, as JSON values: leak, capacity, coverage of earlier tasks."""
        return {} if self.method is None else self.method.facts()

    # ---- The two halves of `begin`, which a Trainer calls at different times

    def _attach(self, model: nn.Module, seed: int) -> None:
        """Add the task's layers; the number of steps and the rows are not known yet."""
        self._check_stage("new", "begin")
        base, given = base_model(model), given_pairs(model)
        if given is not None and not METHODS[self._name].uses_lora:
            raise ConfigError(
                f"the model has a LoRA adapter, but the method `{self._name}` trains the weights themselves. Give the "
                "model without an adapter."
            )
        if given is not None and self._lora is not None:
            raise ConfigError("lora is given, but the model has a LoRA adapter of its own. Leave one of them out.")
        self._build(model, base, given)
        assert self.method is not None
        self._trained_before = [(p, p.requires_grad) for p in model.parameters()]
        if given is not None:
            take_out(base, given)
        try:
            self._set_up()
            if self.folder.current is not None and self.folder.learned:
                self.method.load_state_dict(self.folder.current.method_state(self._base.sha256))
            self.notes = [*self.method.notes(base), *self.method.warnings(self.index - 1)]
            self._context = self._context_of(0, rows_unknown)
            devices = [_device(base)] if _device(base).type == "cuda" else []
            with torch.random.fork_rng(devices):  # new pairs depend on the seed, and leave the random state as it was
                torch.manual_seed(seed)
                self.stage = "begun"
                self.method.begin_task(base, self._context)
        except BaseException:
            self.abandon()
            raise
        self._found = SavedModelState(model)

    @property
    def _own_seed(self) -> int:
        """Seed of this task, where no Trainer has one."""
        return self.seed * 1000 + self.index

    def _batches_of(self, rows: DataLoader[Any], model: nn.Module) -> Callable[[int, int | None], Iterator[Batch]]:
        """Return `TaskContext.batches` for the rows of a data loader, where no Trainer has one."""
        return row_batches(rows, seed=self._own_seed, device=_device(model))

    def _build(self, model: nn.Module, base: nn.Module, given: GivenPairs | None) -> Method:
        """Make the method for a model; without settings of its own, the pairs are those of the learned tasks."""
        self.method = build_method(self._name, self._config, given or self._lora or self.folder.lora)
        self._model, self._base_model, self._given = model, base, given
        return self.method

    def _set_up(self) -> None:
        """Choose the layers, and compare them and the model with those of the folder."""
        assert self.method is not None
        base = self._base_model
        self.method.setup(base)
        self.method.weights = _known.get(base, self.method.weights)
        self._base = Base.of(base, self.method.weights.sha256())
        self._layers = self.method.choose(base)
        self.folder.check_base(self._base)
        self.folder.check_layers(self._layers)

    def _start(self, num_steps: int, batches: Callable[[int, int | None], Iterator[Batch]]) -> None:
        """Tell the method the task's rows and its number of steps."""
        self._check_stage("begun", "begin")
        assert self.method is not None
        self._context = self._context_of(num_steps, batches)
        with self._as_found():
            self.method.begin_training(self._base_model, self._context)
        self.stage = "training"

    def _context_of(self, num_steps: int, batches: Callable[[int, int | None], Iterator[Batch]]) -> TaskContext:
        return TaskContext(
            name=self.task,
            index=self.index,
            seed=self.seed,
            num_steps=num_steps,
            batches=batches,
            reading=ReadingBar(self.task, shown=self.shows_progress),
        )

    # ---- Helpers

    def _put_back(self) -> None:
        """Restore the weights that the model came with, the user's adapter, and which parameters are trained."""
        assert self.method is not None
        if self._base_model not in _known:  # W₀; otherwise the model has trained a task and came with all of them
            self.method.weights.load({})
        if self._given is not None:
            put_back(self._base_model, self._given)
        for parameter, trained in self._trained_before:
            parameter.requires_grad_(trained)

    def _add_penalty(self) -> None:
        """Add the gradient of a loss term that depends on the weights alone."""
        assert self.method is not None
        nothing: Any = None
        term = self.method.extra_loss(self._base_model, {}, nothing)
        if term is None:
            return
        trained = [p for p in self._base_model.parameters() if p.requires_grad]
        # Not `backward`: the hooks of data parallelism on the parameters must not run a second time.
        for p, gradient in zip(trained, torch.autograd.grad(term, trained, allow_unused=True), strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else p.grad + gradient

    def _score(self) -> None:
        """Call the user's evaluation function."""
        if self.evaluate is None:
            return
        training = self._model.training
        self._model.eval()
        try:
            self.scores = {str(name): float(score) for name, score in self.evaluate(self._model).items()}
        finally:
            self._model.train(training)

    @contextmanager
    def _as_found(self) -> Iterator[None]:
        """Inside this context the model computes as before a Trainer wrapped its forward pass, in its own dtype."""
        now = SavedModelState(self._model)
        self._found.restore()
        try:
            yield
        finally:
            now.restore()

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abandon()
            raise

    def _so_far(self) -> str:
        """Say how far the training came."""
        if self.stage == "failed":
            return "it failed"
        return f"{self._steps} of {self._context.num_steps or '?'} steps are done"

    def _check_stage(self, wanted: str, call: str) -> None:
        """Raise if a call comes out of order."""
        if self.stage == wanted:
            return
        if wanted == "new":
            raise TrainingError(
                f"this Protection has been used for task `{self.task}` already. One object trains one task: save it, "
                f"then make a new one, Protection({str(self.folder.store.root)!r}), a new Trainer and, for the next "
                "task's adapter, a new PEFT model."
            )
        raise TrainingError(
            f"`{call}` was called while the task is {self.stage}; the order is begin, parameters, in each step "
            "before_step and after_step, then end and save."
        )


def _not_saved(protection: ProtectedTask) -> str | None:
    """Return a line on a task that has ended and was not saved; None for any other."""
    if protection.stage != "ended" or not protection.shows_progress:
        return None
    root = protection.folder.store.root
    return f"task `{protection.task}` was trained but not saved in {root}: save() was not called"


def rows_unknown(size: int, limit: int | None) -> Iterator[Batch]:
    raise AssertionError("the task's rows are known only when training begins")


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
