"""Save and restore what the Trainer and Accelerate change on a model and on the process.

Accelerate wraps the model's `forward` in autocast and leaves it so. The Trainer switches gradient checkpointing on,
sets `config.use_cache` and registers hooks on embeddings. TrainingArguments set the precision of float32 products for
the whole process. If this stayed, scores after training would be computed in another precision than those before.
"""

from typing import Any

import torch
from torch import nn


CONTENTS = ("_parameters", "_buffers", "_modules")
"""Attributes of a module that hold its tensors and layers: methods change these, the Trainer does not."""


class SavedModelState:
    """Saves, when created, everything of `model` except its tensors and layers.

    That is: the attributes of every module (training or evaluation mode, hooks, a replaced `forward`), the fields of
    its configs, and `requires_grad` of every parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        named = [vars(module).get(key) for module in modules for key in ("config", "generation_config")]
        configs = {id(config): config for config in named if hasattr(config, "__dict__")}
        self._owners = [(owner, _attributes(owner)) for owner in (*modules, *configs.values())]
        self._trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore(self) -> None:
        """Restore what was saved, on the same modules, configs and parameters. Weights are not changed."""
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


class SavedTorchSettings:
    """Saves, when created, this process's settings of torch: float32 precision and deterministic algorithms."""

    def __init__(self) -> None:
        self._backends: Any = torch.backends
        self._precision = self._backends.fp32_precision
        self._cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
        self._deterministic = torch.are_deterministic_algorithms_enabled()
        self._warn_only = torch.is_deterministic_algorithms_warn_only_enabled()

    def restore(self) -> None:
        """Restore the saved settings."""
        self._backends.fp32_precision = self._precision
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = self._cudnn
        torch.use_deterministic_algorithms(self._deterministic, warn_only=self._warn_only)


def _attributes(owner: Any) -> dict[str, tuple[Any, dict[Any, Any] | None]]:
    """Return each attribute, and a copy of its entries if it is a dict.

    Hooks are entries of dicts, and their handles refer to these dicts: `restore` must refill the same dict objects.
    """
    return {
        key: (value, dict(value) if isinstance(value, dict) else None)
        for key, value in vars(owner).items()
        if key not in CONTENTS
    }
