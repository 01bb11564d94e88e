"""What a run will need, from the shapes of its model alone: bytes on the device, seconds a step, bytes kept.

The forward and backward pass that is costed is the one that training runs, on tensors without data. What happens
outside it is written out here, with N tokens a step, S n x s, q = k + oversampling, p power steps:

    optimizer    p, g, m, v read, p, m, v written, g read twice more by clipping
    project A    2 · 4·r·n·s flops: A's gradient before the step, A after it
    project W    2 · 4·m·n·s flops with protected_full: likewise
    refresh      (3 + 2p) · 2·N·q·(m + n) flops in one step of T, and one fold, 2·m·n·k; without a core one product
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from gorp.errors import ModelError
from gorp.estimate.device import Device
from gorp.estimate.kept import Weight, directions, gorp_weights, kept_bytes, refreshes_of
from gorp.estimate.ledger import Ledger, SavedTensors, held_tensors, storage_bytes
from gorp.estimate.protected import ProtectedShapes
from gorp.estimate.shapes import batch_of, check_static, forward_and_backward, make_fake
from gorp.layers.lora import LoraSettings, add_lora
from gorp.layers.targets import resolve
from gorp.methods import build_method
from gorp.methods.base import Method, TaskContext
from gorp.methods.gorp import Gorp, GorpConfig
from gorp.methods.protected_full import ProtectedFull
from gorp.models.load import skeleton
from gorp.training.settings import DEFAULTS
from gorp.workspace.config import RunConfig
from gorp.workspace.lengths import check_budgets


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
    """S on the device, and frames; with protected_full W at the task's start."""
    gradients: int
    """Of what is trained."""
    optimizer: int
    """AdamW's two moments."""
    activations: int
    """What autograd keeps from the forward pass of one micro-batch."""
    peak: int
    """The most that is alive at once."""
    main_memory: int
    """Beside the device: W₀ of the trained weights. On a CPU it is the same memory and part of `peak`."""
    flops: int
    """Matrix products of one optimizer step."""
    seconds: float
    """One optimizer step."""
    kept: int
    """Carried from task to task, after the last task, at most."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def predict(config: RunConfig, device: Device) -> dict[str, Estimate]:
    """Estimates of `gorp`, of `lora` on every linear layer as PEFT does it, and of `full` AdamW.

    gorp is as the YAML has it; with its defaults where the YAML asks for another method. Where that is
    `protected_full`, its estimate comes first.

    Raises:
        ModelError: If there is no such model, a target pattern matches none of its layers, or the shapes of a step
            depend on the data, as where tokens are sent to experts.
        ConfigError: If the budgets of a row exceed the model's positions.
    """
    check_static(skeleton(config.model))
    step = _Step(config, device)
    own = {"protected_full": step.protected_full()} if config.method == ProtectedFull.name else {}
    return own | {"gorp": step.gorp(), "lora": step.lora(), "full": step.full()}


class _Step:
    """One optimizer step of `config` on `device`."""

    def __init__(self, config: RunConfig, device: Device) -> None:
        self.config, self.device = config, device
        options = DEFAULTS | dict(config.training)
        self.tasks = len(config.tasks)
        self.rows = int(options["per_device_train_batch_size"])
        self.accumulation = int(options.get("gradient_accumulation_steps", 1))
        self.checkpointing = bool(options.get("gradient_checkpointing", False))
        self.steps = options["max_steps"] if options.get("max_steps", -1) > 0 else None
        self.autocast = torch.bfloat16 if options.get("bf16") else torch.float16 if options.get("fp16") else None

    def gorp(self) -> Estimate:
        """At the last task of the YAML, S as large as the tasks before it can make it."""
        method = self._method()
        model = skeleton(self.config.model)
        method.setup(model)
        weights = gorp_weights(model, method)
        sizes = {
            w.name: directions(w, method.config, method.lora.r, refreshes=refreshes, tasks=self.tasks - 1)
            for w, refreshes in refreshes_of(weights, method.config, self.steps)
        }
        memory = {w.name: torch.empty(w.n, sizes[w.name], device="meta") for w in weights}
        self._begin(model, method, memory)
        base = sum(4 * w.m * w.n if w.core else 0 for w in weights) * _item(model) // 4
        frames = storage_bytes(b for name, b in model.named_buffers() if name.endswith((".left", ".right")))
        r = method.lora.r
        seconds, flops = self._beside(weights, sizes, method.config, r)
        return self._estimate(
            model,
            protection=storage_bytes(memory.values()) + frames,
            base=base,
            seconds=seconds,
            flops=flops,
            kept=kept_bytes(weights, method.config, r, tasks=self.tasks, steps=self.steps),
        )

    def protected_full(self) -> Estimate:
        """At the last task of the YAML, S as large as the tasks before it can make it."""
        method, model = self._own(), skeleton(self.config.model)
        assert isinstance(method, ProtectedFull)
        method.setup(model)
        shapes, before = ProtectedShapes(model, method), self.tasks - 1
        base = storage_bytes(model.get_parameter(name) for name in shapes.shapes)
        own = model.dtype == torch.bfloat16 and not {"bf16", "fp16"} & set(self.config.training)
        autocast = torch.bfloat16 if own else None  # as training sets it where a method widens
        sizes = shapes.directions(before)
        memory = {name: torch.empty(n, sizes[name], device="meta") for name, (_, n) in shapes.shapes.items()}
        self._begin(model, method, memory)
        seconds, flops = shapes.step(before, self.device)
        protection = storage_bytes(memory.values()) + shapes.starts(before)
        return self._estimate(
            model,
            protection=protection,
            base=base,
            seconds=seconds,
            flops=flops,
            autocast=autocast,
            kept=shapes.kept(self.tasks),
        )

    def _begin(self, model: nn.Module, method: Gorp | ProtectedFull, memory: dict[str, Tensor]) -> None:
        """The last task of the YAML, with the bases of `memory`."""
        energies = {f"{name}::energy": torch.empty(basis.shape[1]) for name, basis in memory.items()}
        method.memory.load_state_dict(memory | energies)
        method.begin_task(
            model, TaskContext(name="", index=self.tasks, seed=0, num_steps=self.steps or 1000, batches=_no_rows)
        )

    def lora(self) -> Estimate:
        """PEFT's LoRA on all linear layers."""
        model, settings = skeleton(self.config.model), self.config.lora or LoraSettings()
        model.requires_grad_(False)
        pairs = add_lora(model, resolve(model, "all-linear", role="lora"), settings)
        kept = storage_bytes(factor for pair in pairs.values() for factor in (pair.down, pair.up))
        return self._estimate(model, kept=kept)

    def full(self) -> Estimate:
        """AdamW on every parameter; what it keeps is another model."""
        model = skeleton(self.config.model)
        kept = 4 * sum(p.numel() for p in model.parameters())
        return self._estimate(model, kept=kept)

    def _method(self) -> Gorp:
        method = self._own()
        return method if isinstance(method, Gorp) else Gorp(GorpConfig(), self.config.lora or LoraSettings())

    def _own(self) -> Method:
        return build_method(self.config.method, self.config.options, self.config.lora)

    def _estimate(
        self,
        model: PreTrainedModel,
        *,
        kept: int,
        protection: int = 0,
        base: int = 0,
        seconds: float = 0.0,
        flops: int = 0,
        autocast: torch.dtype | None = None,
    ) -> Estimate:
        """Run the micro-batch on shapes, and add what was computed beside it.

        Args:
            model: On the meta device, with adapters; what is trained requires a gradient.
            kept: See `Estimate`.
            protection: Bytes of S and frames.
            base: Bytes of W₀ in main memory.
            seconds: Of a step, beside passes and optimizer.
            flops: Likewise.
            autocast: Of the forward pass, where the YAML does not say.
        """
        trained = [p for p in model.parameters() if p.requires_grad]
        held = storage_bytes(held_tensors(model))
        trained_bytes = storage_bytes(trained)
        beside = storage_bytes(p for n, p in model.named_parameters() if ".lora_" in n or n.endswith(".core"))
        buffers = storage_bytes(b for name, b in model.named_buffers() if name.endswith((".left", ".right")))
        ledger, saved = self._run(model, self.autocast or autocast)
        optimizer = 2 * trained_bytes
        resident = held + protection - buffers + optimizer
        resident += base if self.device.on_host else 0
        optimizing = self.device.seconds(0, 9 * trained_bytes)
        return Estimate(
            trainable=sum(p.numel() for p in trained),
            weights=held - beside - buffers,
            trained=beside,
            protection=protection,
            gradients=trained_bytes,
            optimizer=optimizer,
            activations=saved.bytes,
            peak=resident + ledger.peak,
            main_memory=base,
            flops=self.accumulation * ledger.flops + flops,
            seconds=self.accumulation * ledger.seconds + optimizing + seconds,
            kept=kept,
        )

    def _run(self, model: PreTrainedModel, autocast: torch.dtype | None) -> tuple[Ledger, SavedTensors]:
        """One micro-batch on shapes."""
        check_budgets(model, self.config.encoding)
        model.config.use_cache = False  # as the Trainer sets it
        if self.checkpointing:
            newer = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            newer({"use_reentrant": False})
            model.enable_input_require_grads()
        mode = FakeTensorMode()
        make_fake(model, mode)
        encoding = self.config.encoding
        with mode:
            batch = batch_of(
                model, rows=self.rows, prompt=encoding.max_prompt_tokens, answer=encoding.max_completion_tokens
            )
            with Ledger(self.device) as ledger, SavedTensors(model) as saved:
                try:
                    forward_and_backward(model, batch, autocast=autocast)
                except Exception as error:  # what a model does with tensors without data is its own affair
                    kind = type(error).__name__
                    raise ModelError(
                        f"`{model.config.model_type}` cannot be estimated: its step does not run on shapes alone "
                        f"({kind}). Train a few steps (`max_steps`) and look at the time and the memory."
                    ) from error
        return ledger, saved

    def _beside(self, weights: list[Weight], sizes: dict[str, int], config: GorpConfig, r: int) -> tuple[float, int]:
        """Seconds and flops of gorp's own work in a step: projections of A, and refreshes / T."""
        seconds, flops = 0.0, 0
        q, sketched = config.rank + config.oversampling, config.memory_source == "sketch"
        power = config.power_steps or 0
        for w in weights:
            s = sizes[w.name]
            if w.lora and config.adapter_rows == "trained":
                work, moved = 2 * 4 * r * w.n * s, 2 * 2 * 4 * w.n * s
                flops, seconds = flops + work, seconds + self.device.seconds(work, moved)
            if products := (2 + 2 * power) * w.core + (w.core or sketched):
                tokens = self._tokens(w.name)
                work = products * 2 * tokens * q * (w.m + w.n) + 2 * w.m * w.n * config.rank * w.core
                moved = products * 4 * (tokens * (w.m + w.n) + 2 * w.n * s) + 2 * 4 * w.m * w.n * w.core
                flops += work // config.refresh_every
                seconds += self.device.seconds(work, moved) / config.refresh_every
        return seconds, flops

    def _tokens(self, name: str) -> int:
        """N of a step at a weight: an encoder-decoder's decoder sees the answer, everything else the prompt."""
        encoding = self.config.encoding
        prompt, answer = encoding.max_prompt_tokens, encoding.max_completion_tokens
        if not name.startswith(("encoder.", "decoder.")):
            prompt += answer
        cross = "EncDecAttention.k" in name or "EncDecAttention.v" in name
        length = answer if name.startswith("decoder.") and not cross else prompt
        return self.rows * self.accumulation * length


def _item(model: nn.Module) -> int:
    return next(model.parameters()).element_size()


_no_rows: Callable[..., Any] = lambda *_: iter(())  # noqa: E731
