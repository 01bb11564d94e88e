"""The methods whose cost is compared, each as a thing that takes one training step; and the clock they share.

A step is what Hugging Face's Trainer does with its defaults: forward, backward, the method's edit of the gradients,
clipping to norm 1, AdamW (fused), the method's correction of the weights. All peers see the same batch and hold the
same base weights. galore-torch and apollo-torch come with `pip install -e '.[benchmark]'`.
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
"""Learning rate; nothing is learned here, and weights that blow up would be timed on NaN."""

Batch = Mapping[str, Tensor]


@dataclass
class Peer:
    """A model with an optimizer, one step at a time."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    method: Method | None = None
    """Whose seams are called; None for methods that are an optimizer or a PEFT adapter."""
    losses: list[Tensor] = field(default_factory=list)

    def step(self, batch: Batch) -> None:
        """Forward, backward, edit, clip, optimizer, correction."""
        self.backward(batch)
        self.update()

    def backward(self, batch: Batch) -> None:
        """The loss and its gradients; in a bfloat16 model under autocast, as `training: {bf16: true}` runs."""
        weight = next(self.model.parameters())
        with torch.autocast(weight.device.type, dtype=torch.bfloat16, enabled=weight.dtype == torch.bfloat16):
            outputs = self.model(**batch)
        loss = outputs.loss
        extra = (
            None
            if self.method is None
            else self.method.extra_loss(self.model, dict(batch), self._seen(dict(batch), outputs))
        )
        (loss if extra is None else loss + extra).backward()

    def _seen(self, batch: dict[str, Tensor], outputs: Any) -> Outputs:
        """The forward pass for a method's loss term, as the Trainer glue shows it."""

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
        """Everything after the gradients."""
        if self.method is not None:
            self.method.edit_gradients(self.model, self.optimizer)
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        if self.method is not None:
            with torch.no_grad():
                self.method.after_step(self.model, self.optimizer)
        self.optimizer.zero_grad()


def task_of(index: int, num_steps: int = 1000, batch: Batch | None = None) -> TaskContext:
    """A task. A method that asks for rows of it sees those of `batch`, again and again until they are as many."""

    def batches(size: int, limit: int | None) -> Iterator[dict[str, Tensor]]:
        for start in range(0, count := _asked(batch, limit), size):
            assert batch is not None
            rows = torch.arange(start, min(start + size, count))
            yield {name: value[rows.to(value.device) % len(value)] for name, value in batch.items()}

    return TaskContext(name=f"task{index}", index=index, seed=0, num_steps=num_steps, batches=batches)


def _asked(batch: Batch | None, limit: int | None) -> int:
    """How many rows to give: as many as are asked for; where all are, those of the batch."""
    return 0 if batch is None else len(next(iter(batch.values()))) if limit is None else limit


def attach(method: Method, model: nn.Module, index: int, num_steps: int = 1000, batch: Batch | None = None) -> Peer:
    """A peer at the beginning of task `index`, through the seams that the Trainer glue calls."""
    method.begin_task(model, task_of(index, num_steps, batch))
    return Peer(model, torch.optim.AdamW(method.parameter_groups(model, RATE), lr=RATE, fused=True), method)


def gorp(model: nn.Module, batch: Batch, **options: Any) -> Peer:
    """gorp in strict mode: a core on every linear layer, LoRA on queries and values; task 2, with a real S."""
    config = GorpConfig(**({"full_modules": "all-linear", "rank": RANK} | options))
    method = Gorp(config, LoraSettings(r=RANK, target_modules=queries_and_values(model)))
    method.setup(model)
    earlier = _other_rows(batch, model.get_input_embeddings().num_embeddings)  # pyright: ignore[reportCallIssue]
    peer = attach(method, model, 1, num_steps=config.refresh_every, batch=earlier)
    for _ in range(config.refresh_every + 1):  # each layer has its turn, and its core a moment
        peer.step(earlier)
    method.end_task(model, peer.optimizer, task_of(1, batch=earlier))
    return attach(method, model, 2, batch=batch)


def _other_rows(batch: Batch, vocabulary: int) -> Batch:
    """Rows of the same shape with other tokens: of the same ones S would hold all that there is to learn."""
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
    """PEFT's OSF (orthogonal subspace fine-tuning) on every linear layer, its default rank."""
    return _peft(model, OSFConfig(target_modules="all-linear"))


def olora(model: nn.Module, batch: Batch) -> Peer:
    """Our O-LoRA on every linear layer at task 10: nine earlier adapters in the penalty."""
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
"""Name -> what makes the peer of a model (nothing trainable yet) and a batch."""


class Timer:
    """Seconds of actions, one at a time or by turns.

    Args:
        device: "cuda" has its queue drained before and after.
        clock: "wall", or "cpu": processor time of this process, which other processes on a busy machine hardly change.
    """

    def __init__(self, device: str, clock: str = "wall") -> None:
        self.device = device
        self.now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]

    def seconds(self, action: Callable[[], Any]) -> float:
        """Of one call."""
        self._drain()
        started = self.now()
        action()
        self._drain()
        return self.now() - started

    def interleaved(self, actions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
        """Of each action in each round; every round runs them all, each time beginning with another one.

        A machine that slows down for a while slows all of them, so that ratios stay.
        """
        times: dict[str, list[float]] = {name: [] for name in actions}
        names = list(actions)
        gc.collect()
        gc.disable()  # a collection would fall on whichever peer is at work
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
    """Median, quartiles and extremes."""
    quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": quarters[1], "q1": quarters[0], "q3": quarters[2], "min": min(values), "max": max(values)}


def chunks(values: Sequence[float], size: int) -> Iterator[Sequence[float]]:
    """Whole runs of `size` values."""
    for start in range(0, len(values) - size + 1, size):
        yield values[start : start + size]


def load_average() -> float:
    """Processes that wanted a core in the last minute, ours among them."""
    return os.getloadavg()[0]


def _peft(model: nn.Module, config: Any) -> Peer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    trained = [p for p in adapted.parameters() if p.requires_grad]
    return Peer(adapted, torch.optim.AdamW(trained, lr=RATE, fused=True))


def _linear_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of all linear layers but the head, now trainable."""
    head = model.get_output_embeddings()  # pyright: ignore
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]
    for weight in weights:
        weight.requires_grad_(True)
    return weights


def _submodule(package: str, name: str) -> Any:
    """A module of a package whose `__init__` is left out: GaLore's asks for bitsandbytes, which nothing here needs."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise SystemExit(f"{package} is not installed: pip install -e '.[benchmark]'")
        sys.modules[package] = shell = types.ModuleType(package)
        shell.__path__ = list(spec.submodule_search_locations or [])
    return importlib.import_module(f"{package}.{name}")
