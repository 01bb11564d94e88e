"""The methods whose cost is compared (peers), each of which can take one training step, and the timer.

A step is that of Hugging Face's Trainer with its defaults: forward, backward, the method's edit of the gradients,
clipping to norm 1, AdamW (fused), the method's correction of the weights. All peers get the same batch and share the
same base weights. galore-torch and apollo-torch are installed by `pip install -e '.[benchmark]'`.
"""

import gc
import importlib
import importlib.util
import os
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, OSFConfig, get_peft_model
from shapes import queries_and_values
from torch import Tensor, nn

from gorp.core.outputs import IGNORED, Answers, Outputs, answers_of
from gorp.layers.lora import LoraSettings
from gorp.methods.base import Method, TaskContext
from gorp.methods.gorp import Gorp, GorpConfig
from gorp.methods.olora import OLora


RANK = 8
"""r of every LoRA pair, k of gorp's cores, the rank of GaLore and APOLLO."""

RATE = 1e-5
"""Learning rate. It is small because nothing has to be learned, and diverging weights would be timed on NaN."""

Batch = Mapping[str, Tensor]


@dataclass
class Peer:
    """A model with an optimizer that takes one step at a time."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    method: Method | None = None
    """Method whose method hooks are called; None if the peer is only an optimizer or a PEFT adapter."""
    losses: list[Tensor] = field(default_factory=list)

    def step(self, batch: Batch) -> None:
        """Take one step: forward, backward, edit, clip, optimizer, correction."""
        self.backward(batch)
        self.update()

    def backward(self, batch: Batch) -> None:
        """Compute the loss and its gradients; bfloat16 models run under autocast, as with `training: {bf16: true}`."""
        weight = next(self.model.parameters())
        with torch.autocast(weight.device.type, dtype=torch.bfloat16, enabled=weight.dtype == torch.bfloat16):
            outputs = self.model(**batch)
        loss = outputs.loss
        extra = (
            None
            if self.method is None
            else self.method.extra_loss(self.model, dict(batch), self._outputs(dict(batch), outputs))
        )
        (loss if extra is None else loss + extra).backward()

    def _outputs(self, batch: dict[str, Tensor], outputs: Any) -> Outputs:
        """Return the forward pass in the form that the Trainer code passes to a method's loss term."""

        def answers(outputs: Any, batch: Mapping[str, Tensor]) -> Answers:
            return answers_of(outputs.logits, batch["labels"], shifted=not self.model.config.is_encoder_decoder)

        return Outputs(
            self.model,
            batch,
            first=lambda: answers(outputs, batch),
            run=lambda other: answers(self.model(**other), other),
            weight=lambda: 1 / (batch["labels"] != IGNORED).sum(),
        )

    def update(self) -> None:
        """Take the part of the step after the backward pass."""
        if self.method is not None:
            self.method.edit_gradients(self.model, self.optimizer)
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        if self.method is not None:
            with torch.no_grad():
                self.method.after_step(self.model, self.optimizer)
        self.optimizer.zero_grad()


def task_of(index: int, num_steps: int = 1000, batch: Batch | None = None) -> TaskContext:
    """Return a task context whose rows are those of `batch`, repeated as often as a method asks for."""

    def batches(size: int, limit: int | None) -> Iterator[dict[str, Tensor]]:
        for start in range(0, count := _asked(batch, limit), size):
            assert batch is not None
            rows = torch.arange(start, min(start + size, count))
            yield {name: value[rows.to(value.device) % len(value)] for name, value in batch.items()}

    return TaskContext(name=f"task{index}", index=index, seed=0, num_steps=num_steps, batches=batches)


def _asked(batch: Batch | None, limit: int | None) -> int:
    """Return the number of rows to provide: `limit`, or the rows of the batch if all are wanted."""
    return 0 if batch is None else len(next(iter(batch.values()))) if limit is None else limit


def attach(method: Method, model: nn.Module, index: int, num_steps: int = 1000, batch: Batch | None = None) -> Peer:
    """Begin task `index` through the method hooks that the Trainer code calls, and return the peer."""
    method.begin_task(model, task_of(index, num_steps, batch))
    method.begin_training(model, task_of(index, num_steps, batch))
    return Peer(model, torch.optim.AdamW(method.parameter_groups(model, RATE), lr=RATE, fused=True), method)


def gorp(model: nn.Module, batch: Batch, **options: Any) -> Peer:
    """gorp in strict mode: a core on every linear layer, LoRA on queries and values; at task 2, with a real S."""
    config = GorpConfig(**({"full_modules": "all-linear", "rank": RANK} | options))
    method = Gorp(config, LoraSettings(r=RANK, target_modules=queries_and_values(model)))
    method.setup(model)
    earlier = _other_rows(batch, model.get_input_embeddings().num_embeddings)  # pyright: ignore[reportCallIssue]
    peer = attach(method, model, 1, num_steps=config.refresh_every, batch=earlier)
    for _ in range(config.refresh_every + 1):  # every layer is refreshed once, and its core has moments
        peer.step(earlier)
    method.end_task(model, peer.optimizer, task_of(1, batch=earlier))
    return attach(method, model, 2, batch=batch)


def _other_rows(batch: Batch, vocabulary: int) -> Batch:
    """Return rows of the same shape with other tokens. With the same tokens, S would contain the whole task 2."""
    return {
        name: (7 * value + 3) % vocabulary if name in ("input_ids", "labels") else value
        for name, value in batch.items()
    }


def lora(model: nn.Module, batch: Batch) -> Peer:
    """PEFT's LoRA on every linear layer."""
    return _peft(model, LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear"))


def dora(model: nn.Module, batch: Batch) -> Peer:
    """PEFT's DoRA on every linear layer."""
    return _peft(model, LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", use_dora=True))


def osf(model: nn.Module, batch: Batch) -> Peer:
    """PEFT's OSF (orthogonal subspace fine-tuning) on every linear layer, with its default rank."""
    return _peft(model, OSFConfig(target_modules="all-linear"))


def olora(model: nn.Module, batch: Batch) -> Peer:
    """gorp's O-LoRA on every linear layer, at task 10, with nine earlier adapters in the penalty."""
    method = OLora(lora=LoraSettings(r=RANK, target_modules="all-linear"))
    method.setup(model)
    for name in method.layers:
        n = model.get_submodule(name).weight.shape[1]
        method.rows[f"{name}.weight"] = torch.randn(9 * RANK, n) / n**0.5
    return attach(method, model, 10)


def galore(model: nn.Module, batch: Batch, *, gap: int = 10) -> Peer:
    """galore-torch on every linear layer's weight."""
    adamw = _submodule("galore_torch", "adamw").AdamW
    options = {"rank": RANK, "update_proj_gap": gap, "scale": 0.25, "proj_type": "std"}
    return Peer(model, adamw([{"params": _linear_weights(model), **options}], lr=RATE, no_deprecation_warning=True))


def apollo(model: nn.Module, batch: Batch) -> Peer:
    """apollo-torch (random projection, channel-wise, gap 200) on every linear layer's weight."""
    adamw = _submodule("apollo_torch", "apollo").AdamW
    options = {"rank": RANK, "proj": "random", "scale_type": "channel", "scale": 1.0}
    options |= {"update_proj_gap": 200, "proj_type": "std"}
    return Peer(model, adamw([{"params": _linear_weights(model), **options}], lr=RATE))


def full(model: nn.Module, batch: Batch) -> Peer:
    """AdamW on every parameter."""
    model.requires_grad_(True)
    return Peer(model, torch.optim.AdamW(model.parameters(), lr=RATE, fused=True))


PEERS: dict[str, Callable[..., Peer]] = {
    "gorp": gorp,
    "lora": lora,
    "dora": dora,
    "osf": osf,
    "olora": olora,
    "galore": galore,
    "apollo": apollo,
    "full": full,
}
"""Name -> function that builds the peer from a frozen model and a batch."""


class Timer:
    """Measure the seconds of actions, one at a time or interleaved.

    Args:
        device: On "cuda" the device is synchronized before and after an action.
        clock: "wall", or "cpu": processor time of this process, which other processes hardly change.
    """

    def __init__(self, device: str, clock: str = "wall") -> None:
        self.device = device
        self.now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]

    def seconds(self, action: Callable[[], Any]) -> float:
        """Return the seconds of one call."""
        self._drain()
        started = self.now()
        action()
        self._drain()
        return self.now() - started

    def interleaved(self, actions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
        """Return the seconds of each action in each round. Every round runs all actions and starts with another one.

        If the machine is slow for a while, all actions are slow, so their ratios do not change.
        """
        times: dict[str, list[float]] = {name: [] for name in actions}
        names = list(actions)
        gc.collect()
        gc.disable()  # otherwise a collection would be counted for a random peer
        try:
            for index in range(rounds):
                for name in names[index % len(names) :] + names[: index % len(names)]:
                    times[name].append(self.seconds(actions[name]))
                gc.collect(1)
        finally:
            gc.enable()
        return times

    def _drain(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, quartiles and extremes."""
    quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": quarters[1], "q1": quarters[0], "q3": quarters[2], "min": min(values), "max": max(values)}


def chunks(values: Sequence[float], size: int) -> Iterator[Sequence[float]]:
    """Yield consecutive chunks of `size` values; an incomplete last one is left out."""
    for start in range(0, len(values) - size + 1, size):
        yield values[start : start + size]


def load_average() -> float:
    """Return the mean number of runnable processes in the last minute, including this one."""
    return os.getloadavg()[0]


def _peft(model: nn.Module, config: Any) -> Peer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    trained = [p for p in adapted.parameters() if p.requires_grad]
    return Peer(adapted, torch.optim.AdamW(trained, lr=RATE, fused=True))


def _linear_weights(model: nn.Module) -> list[nn.Parameter]:
    """Make the weights of all linear layers except the head trainable, and return them."""
    head = model.get_output_embeddings()  # pyright: ignore
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]
    for weight in weights:
        weight.requires_grad_(True)
    return weights


def _submodule(package: str, name: str) -> Any:
    """Import a module without its package's `__init__`: GaLore's imports bitsandbytes, which is not needed here."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise SystemExit(f"{package} is not installed. Run: pip install -e '.[benchmark]'")
        sys.modules[package] = shell = types.ModuleType(package)
        shell.__path__ = list(spec.submodule_search_locations or [])
    return importlib.import_module(f"{package}.{name}")
