"""One file from which a run goes on: weights, optimizer state and counters in safetensors, written atomically."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from gorp.storage import write_atomic
from scripts.pretrain.optimizer import Optimizer


FILE = "checkpoint.safetensors"


@dataclass(kw_only=True)
class Progress:
    """Counters of a run."""

    step: int = 0
    """Optimizer steps done."""
    text_batches: int = 0
    """Text batches used."""
    pairs_batches: int = 0
    """Instruction batches used."""
    reading_batches: int = 0
    """Batches read with the teacher."""
    tokens: int = 0
    """Encoder and decoder tokens used, padding left out."""
    began: float = 0.0
    """Start of the first session, seconds since 1970."""
    budget: float = 0.0
    """The whole budget when the run was ended early, else 0."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """Held-out losses: step, tokens, seconds, loss, perplexity."""


def save(folder: Path, objective: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
    """Write `checkpoint.safetensors`; a kill leaves the old or the new one.

    Args:
        folder: Folder of the run.
        objective: The model, as its part `model`, and what else is learned.
        optimizer: Its optimizer.
        progress: Counters.
    """
    tensors = {name: weight.detach() for name, weight in objective.named_parameters()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.tensors().items()}
    tensors = {name: value.to("cpu").contiguous() for name, value in tensors.items()}
    write_atomic(folder / FILE, to_bytes(tensors, metadata={"progress": json.dumps(asdict(progress))}))


def load(folder: Path, objective: nn.Module, optimizer: Optimizer | None = None) -> Progress | None:
    """Take up `checkpoint.safetensors` when there is one.

    Args:
        folder: Folder of the run.
        objective: As for `save`; its weights are overwritten.
        optimizer: Its optimizer, or none when only the weights are wanted.

    Returns:
        The counters, or none when there is no checkpoint.
    """
    path = folder / FILE
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names if optimizer or not name.startswith("optimizer.")}
        progress = Progress(**json.loads(file.metadata()["progress"]))
    with torch.no_grad():
        for name, weight in objective.named_parameters():
            weight.copy_(tensors[name])
    if optimizer is not None:
        prefix = "optimizer."
        optimizer.load({name[len(prefix) :]: tensors[name] for name in names if name.startswith(prefix)})
    return progress
