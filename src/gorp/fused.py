"""A frozen linear layer and its low-rank branches as one operation, forwards and backwards.

X, N x n   inputs, one row a token          W, m x n   frozen          D, N x m   gradients of the outputs
A, r x n and B, m x r   LoRA factors        U, m x k and V, n x k   the frame, frozen       C, k x k   the core

    Y  = X Wᵀ + [s X Aᵀ, X V Cᵀ] [B, U]ᵀ

Written branch by branch, every branch reads X and D once more and adds a tensor as large as Y and one as large as X.
Here the branches of a layer share one thin product on each side, the results are accumulated into what the frozen
product wrote, and nothing is computed that nobody trains:

    forward    N·(2·m·n + 2·(r + k)·(m + n)) flops       stores X V and X Aᵀ (N x (r + k)); X as well where A is trained
    backward   as much, and 2·N·r·n for A, 2·N·r·m for B; no gradient of W, U or V
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class FusedBranches(torch.autograd.Function):
    """`FusedBranches.apply(x, weight, bias, core, left, right, down, up, scale)`; no LoRA where `down` is None.

    x, weight and bias in one dtype, in which all products with N and m or n in them run; the core in its own, and the
    k x k products too. Gradients go to x, core, down and up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        core: Tensor,
        left: Tensor,
        right: Tensor,
        down: Tensor | None,
        up: Tensor | None,
        scale: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y, hidden = forward_products(rows, weight, bias, core, left, right, down, up, scale)
        trained = ctx.needs_input_grad[6]  # A: without its gradient X is not needed again
        ctx.save_for_backward(x if trained else None, weight, hidden, core, left, right, down, up)
        ctx.scale, ctx.shape = scale, x.shape
        # Not a view: some models (Gemma 3n) write into it in place, which autograd refuses for a view made here.
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[-1]))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, hidden, core, left, right, down, up = ctx.saved_tensors
        d = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        rows = None if x is None else x.reshape(-1, x.shape[-1])
        need = ctx.needs_input_grad[0]
        d_x, d_core, d_down, d_up = backward_products(
            d, rows, weight, hidden, core, left, right, down, up, ctx.scale, need_input=need
        )
        return None if d_x is None else d_x.reshape(ctx.shape), None, None, d_core, None, None, d_down, d_up, None


def forward_products(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    core: Tensor,
    left: Tensor,
    right: Tensor,
    down: Tensor | None,
    up: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Y, N x m, and [X Aᵀ, X V], N x (r + k), of X, N x n."""
    into, out = _joined(down, right.mT, dim=0).to(rows.dtype), _joined(up, left, dim=1).to(rows.dtype)
    hidden = rows @ into.mT
    r = 0 if down is None else len(down)
    inside = hidden[:, r:].to(core.dtype)
    y = rows @ weight.mT if bias is None else torch.addmm(bias, rows, weight.mT)
    y.addmm_(_joined(scale * hidden[:, :r], (inside @ core.mT).to(rows.dtype), dim=1), out.mT)
    return y, hidden


def backward_products(
    d: Tensor,
    rows: Tensor | None,
    weight: Tensor,
    hidden: Tensor,
    core: Tensor,
    left: Tensor,
    right: Tensor,
    down: Tensor | None,
    up: Tensor | None,
    scale: float,
    *,
    need_input: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """The gradients of X (where needed), C, A and B (where there is LoRA) from D, N x m."""
    into, out = _joined(down, right.mT, dim=0).to(d.dtype), _joined(up, left, dim=1).to(d.dtype)
    r = 0 if down is None else len(down)
    outside = d @ out  # [D B, D U], N x (r + k)
    d_scaled, d_inside = scale * outside[:, :r], outside[:, r:].to(core.dtype)
    d_core = d_inside.mT @ hidden[:, r:].to(core.dtype)  # dL/dC = (D U)ᵀ X V
    d_down = d_up = d_x = None
    if down is not None and rows is not None:
        d_down = (d_scaled.mT @ rows).to(down.dtype)  # s (D B)ᵀ X
    if up is not None:
        d_up = (d.mT @ hidden[:, :r]).to(up.dtype).mul_(scale)  # s Dᵀ X Aᵀ
    if need_input:
        d_x = d @ weight
        d_x.addmm_(_joined(d_scaled, (d_inside @ core).to(d.dtype), dim=1), into)  # + [s D B, D U C] [A; Vᵀ]
    return d_x, d_core, d_down, d_up


def _joined(first: Tensor | None, second: Tensor, *, dim: int) -> Tensor:
    """Both side by side (dim 1) or one below the other (dim 0); the second alone where there is no first."""
    return second if first is None or first.numel() == 0 else torch.cat([first.to(second.dtype), second], dim=dim)
