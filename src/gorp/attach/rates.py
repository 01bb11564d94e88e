"""A method's learning rates and weight decays in an optimizer that somebody else made.

A Trainer puts all trainable parameters into groups with one learning rate. A method may want others: gorp trains B
twice as fast where A is fixed, and never decays a core. During a step the groups are therefore divided; before and
after it they are as the Trainer made them, so its schedules, logs and checkpoints are what they would be without gorp.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gorp.errors import TrainingError


OWN = ("params", "lr", "weight_decay")
"""What differs between the parts of a divided group."""


class Rates:
    """Divides an optimizer's groups for the time of one step.

    Args:
        groups: What the method's `parameter_groups` returned for the learning rate `base`.
        base: The learning rate, above 0, that a group without its own `lr` has.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], base: float) -> None:
        self._wanted: dict[nn.Parameter, tuple[float, float | None]] = {
            p: (group.get("lr", base) / base, group.get("weight_decay")) for group in groups for p in group["params"]
        }
        """Parameter -> factor of the learning rate, and its weight decay, None for that of its group."""
        self._whole: list[dict[str, Any]] = []
        self._parts: list[list[dict[str, Any]]] = []

    def divide(self, optimizer: Optimizer) -> None:
        """Replace each group by parts with the method's learning rates and weight decays."""
        self._whole, self._parts = optimizer.param_groups, []
        for group in self._whole:
            parts: dict[tuple[float, float | None], list[nn.Parameter]] = {}
            for p in group["params"]:
                parts.setdefault(self._wanted.get(p, (1.0, None)), []).append(p)
            self._parts.append(
                [
                    group
                    | {"params": params, "lr": group["lr"] * factor}
                    | ({} if decay is None else {"weight_decay": decay})
                    for (factor, decay), params in parts.items()
                ]
            )
        optimizer.param_groups = [part for parts in self._parts for part in parts]

    def restore(self, optimizer: Optimizer) -> None:
        """Restore the groups; what the step changed in them, besides the learning rate, is kept.

        Raises:
            TrainingError: If the step changed the parts of a group differently: the optimizer keeps a state for each
                group that depends on the learning rate, and there is no one value to keep.
        """
        for group, parts in zip(self._whole, self._parts, strict=True):
            changed = [{key: value for key, value in part.items() if key not in OWN} for part in parts]
            if any(other != changed[0] for other in changed[1:]):
                raise TrainingError(
                    f"{type(optimizer).__name__} keeps values for each group of parameters that depend on its learning "
                    "rate, and this method trains parameters of one group at different rates. Use another optimizer, "
                    "such as adamw_torch, or train with gorp's own Trainer (`gorp train`)."
                )
            for values in changed[:1]:
                group.update(values)
        optimizer.param_groups = self._whole
        self._whole, self._parts = [], []
