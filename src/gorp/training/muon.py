"""`training: {optim: muon}`: torch's Muon for matrices and AdamW for everything else, as one optimizer.

    matrix, m x n      M ← μ M + (1 - μ) G;  W ← (1 - η λ) W - 0.2 η √max(m, n) · NS(μ M + (1 - μ) G)
    all else           AdamW

NS makes all singular values about 1 (Newton-Schulz, in bfloat16). The factor 0.2 √max(m, n) makes the entries of a step
as large as AdamW's, so that both use the same learning rate (Liu et al. 2025, arXiv:2502.16982). AdamW trains norms,
biases, embeddings and the output head; the last two are matrices whose rows are independent of each other.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override


MUON = "muon"
"""Value of `training.optim` that selects this optimizer."""


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers that share one list of groups and one state, so schedules and checkpoints work as usual.

    Args:
        params: Tensors or groups. Each group is split in two, matrices and the rest, both with the group's options.
        lr: η, of both optimizers.
        weight_decay: λ, of both optimizers.
        betas: AdamW's.
        eps: AdamW's.
        tables: Matrices that AdamW trains.
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
        given, table_ids = list(params), {id(table) for table in tables}
        split: dict[bool, list[dict[str, Any]]] = {True: [], False: []}  # whether for Muon -> groups
        for group in given if given and isinstance(given[0], dict) else [{"params": given}]:
            members = list(group["params"])
            for is_matrix, groups in split.items():
                part = [p for p in members if (p.dim() == 2 and id(p) not in table_ids) == is_matrix]
                if part:
                    groups.append({**group, "params": part, "matrices": is_matrix})
        self._parts: dict[bool, torch.optim.Optimizer] = {}
        if split[True]:
            self._parts[True] = torch.optim.Muon(
                split[True], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        if split[False]:
            self._parts[False] = torch.optim.AdamW(split[False], lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
        super().__init__([*split[True], *split[False]], {"lr": lr})
        self._share()

    def _share(self) -> None:
        """Make both optimizers use the groups and the state of this one."""
        for is_matrix, part in self._parts.items():
            part.param_groups = [group for group in self.param_groups if group["matrices"] == is_matrix]
            part.state = self.state

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:  # loading makes new groups and a new state
        super().__setstate__(state)
        self._share()

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with both optimizers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts.values():
            part.step()
        return loss


def tables_of(model: nn.Module) -> list[Tensor]:
    """Return the weights of a model's embeddings and of its output head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return found if head is None else [*found, head.weight]
