"""Muon for the hidden matrices, AdamW for embeddings, position biases and norms.

Muon steps along the orthogonal factor of the momentum and needs about half the tokens of AdamW at this size; its
learning rate is scaled so that an update has the root mean square AdamW would give it ("match_rms_adamw"). Source:
Liu et al. 2025, "Muon is Scalable for LLM Training".
"""

import torch

from scripts.pretrain.objective import Objective


class Optimizers:
    """Both optimizers of a model behind one `step`."""

    def __init__(self, objective: Objective, rate: float, embedding_rate: float) -> None:
        """Sort the weights.

        Args:
            objective: The model, tied weights count once, and what else is learned.
            rate: Peak learning rate of matrices and norms.
            embedding_rate: Peak learning rate of the token embedding.
        """
        tokens = objective.model.get_input_embeddings().weight
        named = [(name, weight) for name, weight in objective.named_parameters() if weight is not tokens]
        matrices = [(name, weight) for name, weight in named if weight.ndim == 2 and "relative" not in name]
        others = [(name, weight) for name, weight in named if weight.ndim != 2 or "relative" in name]
        muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        groups = [
            {"params": [("embedding", tokens)], "lr": embedding_rate},
            {"params": others, "lr": rate},
        ]
        adamw = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
        self.parts = (muon, adamw)
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, factor: float) -> None:
        """Move the weights and clear the gradients.

        Args:
            factor: Factor on the peak learning rates.
        """
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Give the state as flat named tensors: `<optimizer>.<weight number>.<entry>`."""
        return {
            f"{number}.{weight}.{entry}": value
            for number, part in enumerate(self.parts)
            for weight, entries in part.state_dict()["state"].items()
            for entry, value in entries.items()
        }

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up the state `tensors` gave."""
        for number, part in enumerate(self.parts):
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, value in tensors.items():
                owner, weight, entry = name.split(".")
                if int(owner) == number:
                    state.setdefault(int(weight), {})[entry] = value
            part.load_state_dict({**part.state_dict(), "state": state})
