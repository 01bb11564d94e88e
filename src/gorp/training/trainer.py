"""A subclass of Hugging Face's Trainer that calls a method's hooks, for encoder-decoder and decoder-only models.

compute_loss    adds `extra_loss`, which counts once in a step however the step is split into micro-batches
training_step   after the last micro-batch: `edit_gradients`, so that clipping uses the edited gradients
optimizer       the class that the Trainer's arguments name, with the method's groups; after each step: `after_step`
checkpoints     the trainable parameters and the method's state, in safetensors, marked complete at the end
"""

import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Seq2SeqTrainer, Trainer
from typing_extensions import override

from gorp.core.outputs import IGNORED, Answers, Batch, Outputs, answers_of
from gorp.disk import disk_errors
from gorp.errors import ConfigError, TrainingError
from gorp.methods.base import Method
from gorp.training.answers import AnswerLoss, answer_loss
from gorp.training.checkpoint import load_checkpoint, mark_complete, remove_others, save_checkpoint
from gorp.training.failures import KEPT
from gorp.training.preflight import optimizer_of


class ContinualTrainerMixin(Trainer):
    """The hooks of a method in a Trainer. Takes `method=` and `task_name=`; all other arguments are the Trainer's."""

    def __init__(self, *args: Any, method: Method, task_name: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.method, self.task_name = method, task_name
        self.started = time.perf_counter()
        """When the task was started; for a resumed one, now less the seconds that its checkpoint knows."""
        self._last_loss = (0, torch.zeros(()))  # step and loss
        self._without_gradient: dict[str, nn.Parameter] | None = None  # None before the first step
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ConfigError(
                "gorp trains whole matrices, but DeepSpeed and FSDP give the optimizer flattened or sharded ones. "
                "Run on one device, or call train_task under plain data parallelism (torchrun)."
            )

    @override
    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # If so, the Trainer assumes a loss that is divided by the labels of the whole step, and does not divide again.
        scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        if scaled and getattr(self.plain_model.config, "is_encoder_decoder", False):
            # T5 accepts `num_items_in_batch` in **kwargs but ignores it, so its mean is scaled to that share here.
            share = (inputs["labels"] != IGNORED).sum() / num_items_in_batch
            ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss, outputs = super().compute_loss(model, self._inputs_for_smoothing(inputs), return_outputs=True)
            loss = loss * share * ranks
        else:
            with self._restrict_logits(inputs):
                # A copy: with `compute_loss_func` the Trainer removes the labels from the batch.
                loss, outputs = super().compute_loss(
                    model, {**inputs}, return_outputs=True, num_items_in_batch=num_items_in_batch
                )
        extra = None
        if model.training:
            items = num_items_in_batch if scaled else None
            extra = self.method.extra_loss(self.plain_model, inputs, self._outputs_of(inputs, outputs, items))
        if extra is not None:
            loss = loss + (extra / self.current_gradient_accumulation_steps if scaled else extra)
        return (loss, outputs) if return_outputs else loss

    def _outputs_of(self, inputs: Any, outputs: Any, items: Any) -> Outputs:
        """Return the forward pass as `extra_loss` gets it.

        Args:
            inputs: The micro-batch.
            outputs: What the model returned for it.
            items: Number of labels in the whole step if the loss is divided by it, else None.
        """

        def weight() -> float | Tensor:
            if items is None:  # each micro-batch's loss is a mean, and the Trainer averages these means
                return 1 / (inputs["labels"] != IGNORED).sum().clamp(min=1)
            ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            return ranks * self.current_gradient_accumulation_steps / items

        return Outputs(
            self.plain_model,
            inputs,
            first=lambda: self._answers(outputs, inputs["labels"]),
            run=self._run,
            weight=weight,
        )

    def _run(self, batch: Batch) -> Answers:
        """Run one more forward pass, with the model as it is now."""
        return self._answers(self.plain_model(**batch), batch["labels"])

    def _answers(self, outputs: Any, labels: Tensor) -> Answers:
        """Return the logits at the labelled positions, and the labels."""
        return answers_of(outputs["logits"], labels, shifted=False)

    def _inputs_for_smoothing(self, inputs: Any) -> dict[str, Any]:
        """Return a copy of the batch that has `decoder_input_ids` if there is label smoothing.

        T5 makes them from the labels, which the Trainer removes from the batch for label smoothing.
        """
        if self.label_smoother is None or "decoder_input_ids" in inputs:
            return {**inputs}
        model: Any = self.plain_model
        shifted = model.prepare_decoder_input_ids_from_labels(labels=inputs["labels"])
        return {**inputs, "decoder_input_ids": shifted}

    def _restrict_logits(self, inputs: Any) -> AbstractContextManager[None]:
        """Return a context in which the model computes logits only where they are needed; here it does nothing."""
        return nullcontext()

    @override
    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._check_loss()  # the previous one: this loss may still be being computed on a GPU
        self._last_loss = (self.state.global_step + 1, loss)
        if self.accelerator.sync_gradients:
            if self._without_gradient is None:
                self._without_gradient = {name: p for name, p in self.plain_model.named_parameters() if p.requires_grad}
            self._without_gradient = {name: p for name, p in self._without_gradient.items() if p.grad is None}
            self.method.edit_gradients(self.plain_model, self.plain_optimizer)
        return loss

    @override
    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_class, options = optimizer_of(self.args, self.plain_model)
            self.method.check_optimizer(optimizer_class, options)
            groups = self.method.parameter_groups(self.plain_model, options["lr"])
            own = self.method.make_optimizer(groups, options)
            self.optimizer = optimizer_class(groups, **options) if own is None else own
            self.optimizer.register_step_post_hook(lambda *_: self._after_step())
        return self.optimizer

    @property
    def plain_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without Accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def plain_model(self) -> PreTrainedModel:
        """The model without a data-parallel wrapper."""
        return cast(PreTrainedModel, self.model)

    def untouched(self) -> list[str]:
        """Return the trainable parameters that never had a gradient, in this process or before its checkpoint."""
        return [name for name, p in (self._without_gradient or {}).items() if not self.plain_optimizer.state.get(p)]

    def _check_loss(self) -> None:
        step, loss = self._last_loss
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {step} of task `{self.task_name}`. {KEPT} Try a lower learning "
                "rate, or check the rows of this step."
            )

    def check_weights(self) -> None:
        """Raise if the last loss or a trainable parameter is not finite.

        Raises:
            TrainingError: The message names the parameter, the step and the task.
        """
        self._check_loss()
        for name, parameter in self.plain_model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise TrainingError(
                    f"`{name}` is no longer finite after step {self.state.global_step} of task `{self.task_name}`. "
                    f"{KEPT} Try a lower learning rate."
                )

    def _after_step(self) -> None:
        with torch.no_grad():
            self.method.after_step(self.plain_model, self.plain_optimizer)

    @override
    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder, seconds = Path(output_dir or self.args.output_dir or "."), time.perf_counter() - self.started
        save_checkpoint(folder, self.plain_model, self.method, seconds=seconds)

    @override
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_weights()
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with disk_errors(folder):
            if self.args.should_save and folder.exists():  # a damaged or unfinished checkpoint
                shutil.rmtree(folder)
            self.accelerator.wait_for_everyone()
            limit, self.args.save_total_limit = self.args.save_total_limit, None
            try:  # with a limit the Trainer would remove older checkpoints before this one is complete
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            self.accelerator.wait_for_everyone()  # until each rank has written its random state
            if self.args.should_save:
                mark_complete(folder, ranks=self.args.world_size)
                remove_others(folder, keep=limit)

    @override
    def _run_epoch(self, *args: Any, **options: Any) -> None:
        # A task may end inside an epoch and be resumed at its end; the Trainer checks max_steps only after a step.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **options)

    def state_now(self) -> tuple[int, int]:
        """Return the number of the running step, from 1, and the number of all steps."""
        return min(self.state.global_step + 1, self.state.max_steps), self.state.max_steps

    def restore_random_state(self, checkpoint: Path) -> None:
        """Restore the random state that was saved in `checkpoint`."""
        self._load_rng_state(str(checkpoint))

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_checkpoint(Path(resume_from_checkpoint), self.plain_model, self.method)


class ContinualTrainer(ContinualTrainerMixin, Trainer):
    """Trainer for decoder-only models. Where possible the head runs only at labels (`gorp.training.answers`)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Not for a compiled model, which would be compiled again for every number of labels, nor for nn.DataParallel,
        # which splits the batch itself.
        default_loss = (
            self.model_accepts_loss_kwargs and not self.args.label_smoothing_factor and self.compute_loss_func is None
        )
        if default_loss and not self.args.torch_compile and self.args.n_gpu <= 1:
            self.compute_loss_func = answer_loss(self.plain_model)

    @override
    def _restrict_logits(self, inputs: Any) -> AbstractContextManager[None]:
        loss = self.compute_loss_func
        return loss.watching(inputs["labels"]) if isinstance(loss, AnswerLoss) else nullcontext()

    @override
    def _run(self, batch: Batch) -> Answers:
        if not isinstance(self.compute_loss_func, AnswerLoss):
            return super()._run(batch)
        with self._restrict_logits(batch):  # no labels: with them the model would compute its own loss from all logits
            outputs = self.plain_model(**{key: value for key, value in batch.items() if key != "labels"})
        return self._answers(outputs, batch["labels"])

    @override
    def _answers(self, outputs: Any, labels: Tensor) -> Answers:
        logits = outputs["logits"]
        if not isinstance(self.compute_loss_func, AnswerLoss):
            return answers_of(logits, labels, shifted=True)
        targets = labels[:, 1:]
        return Answers(logits=logits[0], labels=targets[targets != IGNORED])


class ContinualSeq2SeqTrainer(ContinualTrainerMixin, Seq2SeqTrainer):
    """Trainer for encoder-decoder models."""
