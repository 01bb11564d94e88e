"""AdamW with steps in proportion to the weights: the rate of a tensor is the run's rate times its own deviation.

Transplanted tensors differ in size by a factor of twenty, since each stands in the scale of its place in the stream.
"""

import torch
from torch import Tensor

from scripts.pretrain.objective import Objective


LEAST = 1e-3
"""Least size of a tensor that is taken for its deviation; position biases begin at zero and have `BIAS`."""

BIAS = 0.1
"""Size taken for position biases and for the constant of the distance."""


class Optimizer:
    """AdamW behind `step(factor)`."""

    def __init__(self, objective: Objective, rate: float) -> None:
        """Give each weight its rate.

        Args:
            objective: The model with its first weights, tied weights count once, and what else is learned.
            rate: Peak rate, in deviations of a tensor.
        """
        groups = [
            {"params": [weight], "lr": rate * size(name, weight.detach())}
            for name, weight in objective.named_parameters()
            if weight.requires_grad
        ]
        self.adamw = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.peaks = [group["lr"] for group in groups]

    def step(self, factor: float) -> None:
        """Move the weights and clear the gradients.

        Args:
            factor: Factor on the peak rates.
        """
        for group, peak in zip(self.adamw.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Give the state as flat named tensors, `<weight number>.<entry>`, and the peak rates."""
        state = self.adamw.state_dict()["state"]
        tensors = {f"{weight}.{entry}": value for weight, entries in state.items() for entry, value in entries.items()}
        return tensors | {"peaks": torch.tensor(self.peaks, dtype=torch.float64)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up the state `tensors` gave."""
        self.peaks = tensors.pop("peaks").tolist()
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            weight, entry = name.split(".")
            state.setdefault(int(weight), {})[entry] = value
        self.adamw.load_state_dict({**self.adamw.state_dict(), "state": state})


def size(name: str, weight: Tensor) -> float:
    """Give the size of a tensor: a matrix's deviation; of a norm's weight half that, or a tenth of its mean."""
    if "relative_attention_bias" in name or name == "shift":
        return BIAS
    if weight.ndim == 1:
        return max(LEAST, 0.5 * weight.std().item(), 0.1 * weight.abs().mean().item())
    return max(LEAST, weight.std().item())
