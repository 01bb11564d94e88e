"""`Protection`: earlier tasks stay protected while an unmodified Hugging Face or TRL Trainer trains the next one.

It is a `TrainerCallback`. What each event does, in the order of a training (transformers 5.17 to 5.23, `trainer.py`):

    on_init_end             end of `Trainer.__init__`: adds what the method trains, before any optimizer exists
    on_train_begin          the optimizer, the data loader and the number of steps are known, a checkpoint is loaded
    on_step_begin           takes the clipping over: it must come after the projection
    on_pre_optimizer_step   after the last micro-batch and the all-reduce: projects the gradients, then clips them
    on_optimizer_step       after the optimizer's step: corrects the weights
    state                   within each checkpoint, before trainer_state.json and a push: writes the method's part of it
    on_log                  the last log, after all steps: ends the task, and reports `cl/...` metrics
"""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState
from typing_extensions import override

from gorp.attach.checks import check_arguments, check_optimizer
from gorp.attach.rates import Rates
from gorp.attach.resume import check_output_dir, load_part, save_part
from gorp.attach.rows import row_batches
from gorp.attach.start import from_adapter, from_finetuned
from gorp.attach.steps import ProtectedTask
from gorp.attach.trackers import Trackers
from gorp.core.distributed import sum_over_ranks
from gorp.errors import ConfigError, TrainingError
from gorp.workspace.version import Version


KEPT_LIMIT = "_gorp_max_grad_norm"
"""Attribute of the arguments that holds the user's `max_grad_norm` while it is 0 within a step."""


class Protection(ProtectedTask, TrainerCallback, ExportableState):
    """Trains one task so that what earlier tasks need is not changed, and saves it as a new version of a folder.

    Pass it to a `Trainer`, `Seq2SeqTrainer` or `SFTTrainer` in `callbacks`, train, and call `save`. The next task takes
    a new object on the same folder. Without a Trainer, make the five calls of `gorp.attach.steps`.

    Args:
        folder: What earlier tasks left; a folder that does not exist yet begins with this task.
        task: Name of the task; None for `task-N`.
        method: A method of `gorp methods`; None for that of the folder, or gorp.
        lora: Settings of the LoRA pairs for a model that comes without an adapter; None for those of the folder, or the
            defaults.
        evaluate: Returns scores of earlier tasks of the model it is given. It is called after each evaluation of the
            Trainer and after the task; the scores reach the trackers and the version.
        seed: Seed of the whole sequence of tasks.
        **options: Options of the method, such as `mode` and `full_modules`; those of the folder where not given.

    Raises:
        ConfigError: If an option does not exist or is not that of the learned tasks, or the method cannot be attached.
        CheckpointError: If the folder is damaged.

    Example:
        >>> from gorp import Protection
        >>> protection = Protection("protected", task="october")
        >>> protection.index, protection.folder.learned
        (1, [])
    """

    @classmethod
    def from_adapter(
        cls,
        folder: str | Path,
        model: nn.Module,
        adapter: str | Path,
        *,
        task: str,
        rows: DataLoader[Any] | None = None,
        **settings: Any,
    ) -> Version:
        """Begin a folder with a task that a LoRA adapter of PEFT has learned, and protect it.

        v1 is the base model with s B A added to each weight, exactly. Later tasks begin with `Protection(folder)` and
        the base model.

        **With rows** the task is protected as if it had been trained here: S holds the main directions of its inputs.

        **Without rows** S holds, for each layer, only the r directions that the adapter reads: the rows of A. A later
        change ΔW then satisfies ΔW Aᵀ = 0. So no later task changes what a layer computes for an input in the span of
        A's rows. The task's real inputs are not in it: of an input x only the part P x in that span is
        protected, a later task may add ΔW (x - P x) to the output, and nothing bounds that. The adapter's own term
        s B A x depends on P x alone and stays as it is; so does the same term in the sum with later adapters, which
        read other directions. This is less than `rows` give, and no coverage is known.

        Args:
            folder: A folder that does not exist yet.
            model: The base model that the adapter was trained on, without the adapter. It is left as the base model.
            adapter: Folder with adapter_config.json and adapter_model.safetensors.
            task: Name of the task.
            rows: A data loader over training rows of the task whose batches are keyword arguments of the model, with
                `labels`; at most `memory_rows` of them are read.
            **settings: `method`, `lora`, `evaluate`, `seed` and options of the method, as for `Protection`, which the
                later tasks have. Without rows the layers are those of the adapter, and cores are off unless
                `full_modules` is given.

        Raises:
            ConfigError: If the adapter is no plain LoRA (DoRA, biases, `modules_to_save`, embeddings) or not for this
                model, the folder has a task already, or the method cannot take over a task. Nothing is written.
            CheckpointError: If a file of the adapter is missing or damaged.

        Example:
            >>> from gorp import Protection
            >>> Protection.from_adapter("kept", model, "october-lora", task="october", rows=loader)  # doctest: +SKIP
        """
        return from_adapter(cls, Path(folder), model, Path(adapter), rows=rows, task=task, **settings)

    @classmethod
    def from_finetuned(
        cls,
        folder: str | Path,
        base: nn.Module,
        tuned: nn.Module,
        *,
        task: str,
        rows: DataLoader[Any],
        **settings: Any,
    ) -> Version:
        """Begin a folder with a task that ordinary fine-tuning has learned, and protect it.

        v1 is the base model with the difference of every parameter that differs, in float32. Norms, embeddings and the
        output head belong to it too, and no later task changes them. S is read from rows for all layers that the method
        may train; from the weights alone nothing is known of the task's inputs.

        Args:
            folder: A folder that does not exist yet.
            base: The base model. It is left as the base model.
            tuned: The fine-tuned model, with the same parameters; it is not changed.
            task: Name of the task.
            rows: As for `from_adapter`.
            **settings: `method`, `lora`, `evaluate`, `seed` and options of the method, as for `Protection`.

        Raises:
            ConfigError: If the models have other parameters or are equal, the folder has a task already, or the method
                cannot take over a task. Nothing was written.

        Example:
            >>> from gorp import Protection
            >>> Protection.from_finetuned("kept", base, tuned, task="october", rows=loader)  # doctest: +SKIP
        """
        return from_finetuned(cls, Path(folder), base, tuned, rows=rows, task=task, **settings)

    _limit: float = 0.0
    """The user's `max_grad_norm`, while the Trainer's own clipping is off."""

    def begin_on(self, args: TrainingArguments, model: nn.Module) -> None:
        """Check a Trainer's arguments and add the task's layers to its model."""
        self._attach(model, args.seed)
        assert self.method is not None
        with self._undone_on_error():
            check_arguments(args, self.method, model)
            check_output_dir(Path(str(args.output_dir)), self._identity())
            if self._given is None and args.gradient_checkpointing:  # also with its new name
                # With reentrant checkpointing gradients reach the layers only if the inputs have one; PEFT and TRL do
                # the same for a model with an adapter.
                model.enable_input_require_grads()  # pyright: ignore[reportCallIssue]

    # ---- Events of the Trainer

    @override
    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        self.begin_on(args, model)

    @override
    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        if self.stage == "new":
            raise TrainingError(
                "this Protection was added to the Trainer after the Trainer was made (`add_callback`), so its layers "
                "are missing. Pass it when you make the Trainer: callbacks=[protection]."
            )
        if self.stage != "begun":
            raise TrainingError(
                f"this Trainer has trained task `{self.task}` already, and its optimizer still has that task's state. "
                "For the next task make a new Protection on the same folder and a new Trainer; to go on with an "
                "interrupted task make both again and call trainer.train(resume_from_checkpoint=True)."
            )
        with self._undone_on_error():
            if state.is_hyper_param_search or model is not self._model:
                raise ConfigError(
                    "the Trainer has replaced its model (`model_init`, hyperparameter search). Give it `model=`, and "
                    "make a new Trainer for each training."
                )
            assert self.method is not None
            self._optimizer = _plain(optimizer)
            check_optimizer(self._optimizer, self.method, self._base_model)
            rate = args.learning_rate or 1.0  # with a learning rate of 0 the factors are those of any other
            self._rates = Rates(self.method.parameter_groups(self._base_model, rate), rate)
            # An error within a step of an earlier training with the same arguments left it at 0, and its value here.
            self._limit = args.max_grad_norm or getattr(args, KEPT_LIMIT, 0.0)
            self.shows_progress = not args.disable_tqdm
            batches = row_batches(train_dataloader, seed=args.seed, device=args.device)
            self._start(state.max_steps, batches)
            self._resume(args, state)
            self._args, self._state, self._control = args, state, control
            self._trackers = Trackers(args)

    @override
    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        setattr(args, KEPT_LIMIT, self._limit)
        args.max_grad_norm = 0.0  # the Trainer would clip before the projection; `on_pre_optimizer_step` clips after it

    @override
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.before_step(self._optimizer)
        if self._limit > 0:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._limit)
        self._restore_limit(args)
        self._rates.divide(self._optimizer)

    @override
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        self._rates.restore(self._optimizer)
        if not getattr(optimizer, "step_was_skipped", False):  # by the gradient scaler of fp16
            self.after_step(self._optimizer)

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.stage == "training" and self.evaluate is not None:
            self._score()
            self._report({f"cl/score/{name}": score for name, score in self.scores.items()}, args, state, control)

    @override
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        # The Trainer logs this once, after the last step: trackers are still open, which they are not in on_train_end.
        if "train_runtime" in (logs or {}) and self._is_finished():
            self.end(self._optimizer)
            self._report(self._metrics(), args, state, control)

    @override
    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._restore_limit(args)
        if self._is_finished():  # a Trainer whose `log` does not call `on_log`
            self.end(self._optimizer)

    @override
    def state(self) -> dict[str, Any]:
        """Return what the Trainer writes into trainer_state.json: which training a checkpoint belongs to.

        The Trainer asks for it within each checkpoint, whoever requested that one: after the weights and the optimizer,
        before trainer_state.json and a push to the hub. So the method's part of the checkpoint is written here.
        """
        if self.stage == "training":
            self._save_part()
        return {"args": {}, "attributes": {"training": self._token}}

    # ---- Helpers

    def _restore_limit(self, args: TrainingArguments) -> None:
        args.max_grad_norm = self._limit
        if hasattr(args, KEPT_LIMIT):
            delattr(args, KEPT_LIMIT)

    _token: str = ""
    """A random name of this training of the task, the same after resuming."""
    _part_of: int = -1
    """Step of the last checkpoint that the method's part was written for."""
    _stopped: bool = False
    """Whether a signal stopped the training."""

    def _identity(self) -> dict[str, Any]:
        current = self.folder.current
        return {
            "folder": str(self.folder.store.root),
            "task": self.task,
            "index": self.index,
            "parent": current.name if current else "the base model",
            "parent_sha256": current.sha256 if current else self._base.sha256,
            "training": self._token,
        }

    def _resume(self, args: TrainingArguments, state: TrainerState) -> None:
        """Load the method's part if the Trainer has resumed from a checkpoint."""
        if state.global_step == 0:
            self._token = secrets.token_hex(8)
            return
        assert self.method is not None
        saved: Any = state.stateful_callbacks  # as read from trainer_state.json: name of a callback -> its state
        self._token = str(saved.get(type(self).__name__, {}).get("attributes", {}).get("training", ""))
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        load_part(checkpoint, self._base_model, self.method, training=self._identity(), step=state.global_step)
        self._steps = state.global_step

    def _save_part(self) -> None:
        step = self._state.global_step
        checkpoint = Path(str(self._args.output_dir)) / f"checkpoint-{step}"
        # A second call of `train` makes a new TrainerState, which asks too, without a checkpoint.
        if step == self._part_of or not checkpoint.is_dir():
            return
        assert self.method is not None
        save_part(checkpoint, self._base_model, self.method, training=self._identity(), step=step)
        self._part_of = step
        # With `enable_jit_checkpoint` SIGTERM ends the training after a checkpoint that no schedule has asked for.
        self._stopped = self._control.should_training_stop and not self._control.should_save

    def _is_finished(self) -> bool:
        """Return whether training has come to its end, and was not stopped by a signal."""
        if self.stage != "training":
            return False
        # Only the rank that writes checkpoints has seen it.
        return not sum_over_ranks(torch.tensor(float(self._stopped), device=self._args.device)).any()

    def _metrics(self) -> dict[str, float]:
        """Return the metrics of the finished task: leak and capacity of the method, and the scores of earlier tasks."""
        facts = self.facts()
        names = {
            "leak": "cl/leak",
            "leak_served": "cl/leak_served",
            "capacity_mean": "cl/capacity_mean",
            "capacity_max": "cl/capacity_max",
        }
        numbers = {names[key]: float(facts[key]) for key in names if isinstance(facts.get(key), int | float)}
        return {"cl/task": float(self.index), **numbers, **{f"cl/score/{k}": v for k, v in self.scores.items()}}

    def _report(
        self, metrics: Mapping[str, float], args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        state.log_history.append({"step": state.global_step, **metrics})
        self._trackers.log(metrics, args, state, control)


def _plain(optimizer: Any) -> Optimizer:
    """Return the optimizer without Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)
