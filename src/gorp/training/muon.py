"""`training: {optim: muon}`: torch's Muon on matrices, AdamW on everything else, as one optimizer.

    matrix, m x n      M ← μ M + (1 - μ) G;  W ← (1 - η λ) W - 0.2 η √max(m, n) · NS(μ M + (1 - μ) G)
    all else           AdamW

NS makes all singular values about 1 (Newton-Schulz, in bfloat16). The factor 0.2 √max(m, n) makes the entries of a step
as large as AdamW's, so that one learning rate serves both (Liu et al. 2025, arXiv:2502.16982). Norms, biases, and the
tables of words, which are matrices of independent rows (embeddings and the output head), are AdamW's.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override


MUON = "muon"
"""What `training.optim` is called."""


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers over one list of groups and one state, so that schedules and checkpoints see a usual optimizer.

    Args:
        params: Tensors or groups; each group is cut in two, with its own options in both.
        lr: η.
        weight_decay: λ, of both.
        betas: Of AdamW.
        eps: Of AdamW.
        tables: Matrices that are AdamW's.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        tables: Iterable[Tensor] = (),
    ) -> None:
        given, kept_out = list(params), {id(table) for table in tables}
        cut: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for group in given if given and isinstance(given[0], dict) else [{"params": given}]:
            members = list(group["params"])
            for is_matrix, groups in cut.items():
                part = [p for p in members if (p.dim() == 2 and id(p) not in kept_out) == is_matrix]
                if part:
                    groups.append({**group, "params": part, "matrices": is_matrix})
        self._parts: dict[bool, torch.optim.Optimizer] = {}
        if cut[True]:
            self._parts[True] = torch.optim.Muon(
                cut[True], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        if cut[False]:
            self._parts[False] = torch.optim.AdamW(cut[False], lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
        super().__init__([*cut[True], *cut[False]], {"lr": lr})
        self._share()

    def _share(self) -> None:
        """Let the two work on our groups and our state."""
        for is_matrix, part in self._parts.items():
            part.param_groups = [group for group in self.param_groups if group["matrices"] == is_matrix]
            part.state = self.state

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:  # a loaded state comes with groups and state of its own
        super().__setstate__(state)
        self._share()

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts.values():
            part.step()
        return loss


def tables_of(model: nn.Module) -> list[Tensor]:
    """The embeddings and the output head of a model."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return found if head is None else [*found, head.weight]
