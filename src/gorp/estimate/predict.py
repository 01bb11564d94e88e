"""Predict what a run needs from the shapes of its model: bytes on the device, seconds of a step, bytes kept.

The forward and backward pass that is counted is the one that training runs, on tensors without data, in the last task
of the YAML, where a method's state is largest. The method says what that state is and what it computes outside the
pass (`assume_learned`, `resident_tensors`, `step_work`). The optimizer reads p, g, m, v and writes p, m, v; clipping
reads g twice more.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from gorp.core.state import footprint
from gorp.errors import ModelError
from gorp.estimate.device import Device
from gorp.estimate.ledger import Ledger, SavedTensors, held_tensors, storage_bytes
from gorp.estimate.shapes import batch_of, check_static, forward_and_backward, make_fake
from gorp.layers.lora import LoraSettings, add_lora
from gorp.layers.targets import resolve
from gorp.methods import build_method
from gorp.methods.base import Method, TaskContext
from gorp.models.load import skeleton
from gorp.rows.lengths import check_budgets
from gorp.training.settings import DEFAULTS
from gorp.workspace.config import RunConfig


USUAL_STEPS = 1000
"""Steps of a task whose length is not known: long enough that no option of a method is cut to it."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The costs of one way to train, in one process. All memory in bytes."""

    trainable: int
    """Numbers that are trained."""
    weights: int
    """The model."""
    trained: int
    """Adapters and cores beside the model."""
    protection: int
    """Held by the method beside the model while a task runs: S, frames, anchors, the weights at the task's start."""
    gradients: int
    """Of what is trained."""
    optimizer: int
    """AdamW's two moments."""
    activations: int
    """What autograd keeps from the forward pass of one micro-batch."""
    peak: int
    """The most that is alive at once."""
    main_memory: int
    """W₀ of the changed weights, in main memory. On a CPU it is the same memory and part of `peak`."""
    flops: int
    """Matrix products of one optimizer step."""
    seconds: float
    """One optimizer step."""
    kept: int
    """Carried from task to task, after the last task, at most."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def predict(config: RunConfig, device: Device) -> dict[str, Estimate]:
    """Return estimates of the YAML's method, and for comparison of `lora` on every linear layer and of `full` AdamW.

    The two are what PEFT and plain fine-tuning cost, without anything of gorp's.

    Raises:
        ModelError: If there is no such model, a target pattern matches none of its layers, or the shapes of a step
            depend on the data, as where tokens are sent to experts.
        ConfigError: If the budgets of a row exceed the model's positions, or the method's costs depend on the data.
    """
    check_static(skeleton(config.model))
    step = _Step(config, device)
    return {config.method: step.of_method(), "lora": step.of_lora(), "full": step.of_full()}


class _Step:
    """One optimizer step of `config` on `device`."""

    def __init__(self, config: RunConfig, device: Device) -> None:
        self.config, self.device = config, device
        options = DEFAULTS | dict(config.training)
        self.rows = int(options["per_device_train_batch_size"])
        self.accumulation = int(options.get("gradient_accumulation_steps", 1))
        self.checkpointing = bool(options.get("gradient_checkpointing", False))
        self.steps = options["max_steps"] if options.get("max_steps", -1) > 0 else None
        self.autocast = torch.bfloat16 if options.get("bf16") else torch.float16 if options.get("fp16") else None

    def of_method(self) -> Estimate:
        """The last task of the YAML; a joint method has one."""
        method, model = self._new_method()
        tasks = 1 if method.joint else len(self.config.tasks)
        method.assume_learned(model, tasks=tasks, steps=self.steps)
        kept = footprint(method.state_dict())

        method, model = self._new_method()
        if tasks > 1:
            method.assume_learned(model, tasks=tasks - 1, steps=self.steps)
        before = list(held_tensors(model))
        # As training sets it where a method trains bfloat16 weights in float32.
        widened = method.widens and model.dtype == torch.bfloat16 and not {"bf16", "fp16"} & set(self.config.training)
        task = TaskContext(
            name="",
            index=tasks,
            seed=0,
            num_steps=self.steps or USUAL_STEPS,
            num_tasks=tasks,
            batches=lambda *_: iter(()),
        )
        method.begin_task(model, task)
        return self._estimate(model, before, method=method, kept=kept, autocast=torch.bfloat16 if widened else None)

    def of_lora(self) -> Estimate:
        """PEFT's LoRA on all linear layers."""
        model = skeleton(self.config.model)
        before = list(held_tensors(model))
        layers = resolve(model, "all-linear", role="lora")
        pairs = add_lora(model, layers, self.config.lora or LoraSettings())
        kept = storage_bytes(factor for pair in pairs.values() for factor in (pair.down, pair.up))
        return self._estimate(model, before, kept=kept)

    def of_full(self) -> Estimate:
        """AdamW on every parameter; what it keeps is another model."""
        model = skeleton(self.config.model)
        return self._estimate(model, list(held_tensors(model)), kept=4 * sum(p.numel() for p in model.parameters()))

    def _new_method(self) -> tuple[Method, PreTrainedModel]:
        """The YAML's method, and its model on the meta device."""
        model = skeleton(self.config.model)
        method = build_method(self.config.method, self.config.options, self.config.lora)
        method.setup(model)
        return method, model

    def _estimate(
        self,
        model: PreTrainedModel,
        before: list[torch.Tensor],
        *,
        kept: int,
        method: Method | None = None,
        autocast: torch.dtype | None = None,
    ) -> Estimate:
        """Run a micro-batch on shapes, and add what stands outside it.

        Args:
            model: On the meta device, with adapters; what is trained requires a gradient.
            before: The tensors that it had without them.
            kept: See `Estimate`.
            method: In the task that is estimated; None without one.
            autocast: Of the forward pass, where the YAML names no dtype.
        """
        trained = [p for p in model.parameters() if p.requires_grad]
        trained_bytes = storage_bytes(trained)
        known = {id(tensor) for tensor in before}
        adapters = storage_bytes(p for p in model.parameters() if id(p) not in known)
        buffers = [b for b in model.buffers() if id(b) not in known]  # frames
        held = [] if method is None else method.resident_tensors()
        estimate = {
            "trainable": sum(p.numel() for p in trained),
            "weights": storage_bytes(before),
            "trained": adapters,
            "protection": storage_bytes([*buffers, *held]),
            "gradients": trained_bytes,
            "optimizer": 2 * trained_bytes,
        }
        resident = sum(estimate[part] for part in ("weights", "trained", "protection", "optimizer"))
        copies = 0 if method is None else storage_bytes(method.weights.copies())
        seconds, flops = self.device.seconds(0, 9 * trained_bytes), 0.0
        for work in [] if method is None else method.step_work(self._tokens):
            seconds += self.device.seconds(work.flops, work.moved) / work.every
            flops += work.flops / work.every
        ledger, saved = self._run(model, method, self.autocast or autocast)
        return Estimate(
            **estimate,
            activations=saved.bytes,
            peak=resident + (copies if self.device.on_host else 0) + ledger.peak,
            main_memory=copies,
            flops=self.accumulation * ledger.flops + int(flops),
            seconds=self.accumulation * ledger.seconds + seconds,
            kept=kept,
        )

    def _run(
        self, model: PreTrainedModel, method: Method | None, autocast: torch.dtype | None
    ) -> tuple[Ledger, SavedTensors]:
        """Run one micro-batch on shapes."""
        check_budgets(model, self.config.encoding)
        model.config.use_cache = False  # as the Trainer sets it
        if self.checkpointing:
            newer = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            newer({"use_reentrant": False})
            model.enable_input_require_grads()
        mode, encoding = FakeTensorMode(), self.config.encoding
        make_fake(model, mode, [] if method is None else method.resident_tensors())
        with mode:
            batch = batch_of(
                model, rows=self.rows, prompt=encoding.max_prompt_tokens, answer=encoding.max_completion_tokens
            )
            with Ledger(self.device) as ledger, SavedTensors(model) as saved:
                try:
                    forward_and_backward(model, batch, autocast=autocast, method=method)
                except Exception as error:  # a model or a method may need values, which these tensors have not
                    name = "" if method is None else f" with the method `{method.name}`"
                    raise ModelError(
                        f"`{model.config.model_type}`{name} cannot be estimated: a step does not run on shapes alone "
                        f"({type(error).__name__}). Train a few steps (`max_steps`), and read the time and the memory."
                    ) from error
        return ledger, saved

    def _tokens(self, name: str) -> int:
        """N of a step at a weight: an encoder-decoder's decoder sees the answer, everything else the prompt."""
        encoding = self.config.encoding
        prompt, answer = encoding.max_prompt_tokens, encoding.max_completion_tokens
        if not name.startswith(("encoder.", "decoder.")):
            prompt += answer
        cross = "EncDecAttention.k" in name or "EncDecAttention.v" in name
        length = answer if name.startswith("decoder.") and not cross else prompt
        return self.rows * self.accumulation * length
