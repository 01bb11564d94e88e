"""A model and a process as they were before training: what the Trainer and Accelerate change on them is put back.

Accelerate wraps the model's `forward` in autocast and leaves it so; the Trainer switches gradient checkpointing on,
sets `config.use_cache`, hangs hooks on embeddings; TrainingArguments set the precision of float32 products of the
whole process. Left in place, the scores after training would be those of another precision than the ones before.
"""

from typing import Any

import torch
from torch import nn


CONTENTS = ("_parameters", "_buffers", "_modules")
"""What a module is made of; a method's business, and no trace of the Trainer."""


class AsFound:
    """Remembers all of `model` but its tensors and layers when it is made.

    Attributes of every module (training or evaluation mode, hooks, an own `forward`), the fields of its config, and
    which parameters are trained.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        named = [vars(module).get(key) for module in modules for key in ("config", "generation_config")]
        configs = {id(config): config for config in named if hasattr(config, "__dict__")}
        self._owners = [(owner, _attributes(owner)) for owner in (*modules, *configs.values())]
        self._trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore(self) -> None:
        """Put it back, on the modules, configs and parameters that there were. Weights stay as they are."""
        for owner, found in self._owners:
            now = vars(owner)
            for key in set(now) - set(found) - set(CONTENTS):
                del now[key]
            for key, (value, entries) in found.items():
                now[key] = value
                if entries is not None:
                    value.clear()
                    value.update(entries)
        for parameter, trained in self._trained:
            parameter.requires_grad_(trained)


class ProcessAsFound:
    """Remembers how torch computes in this process: precision of float32 products, deterministic algorithms."""

    def __init__(self) -> None:
        self._backends: Any = torch.backends
        self._precision = self._backends.fp32_precision
        self._cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
        self._deterministic = torch.are_deterministic_algorithms_enabled()
        self._warn_only = torch.is_deterministic_algorithms_warn_only_enabled()

    def restore(self) -> None:
        """Put it back."""
        self._backends.fp32_precision = self._precision
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = self._cudnn
        torch.use_deterministic_algorithms(self._deterministic, warn_only=self._warn_only)


def _attributes(owner: Any) -> dict[str, tuple[Any, dict[Any, Any] | None]]:
    """Each attribute, and the entries of those that are mappings: hooks live in mappings that handles point to."""
    return {
        key: (value, dict(value) if isinstance(value, dict) else None)
        for key, value in vars(owner).items()
        if key not in CONTENTS
    }
