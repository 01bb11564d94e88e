"""Compute y = W x + b + s B A x + U C Vᵀ x (frozen linear layer, LoRA pair and trained core) in one operation.

X, N x n   inputs, one row per token        W, m x n   frozen          D, N x m   gradients of the outputs
A, r x n and B, m x r   LoRA factors        U, m x k and V, n x k   the frame, frozen       C, k x k   the core

    Y  = X Wᵀ + b + [s X Aᵀ, X V Cᵀ] [B, U]ᵀ

Term by term, every term would read X and D again and allocate one tensor of the size of Y and one of the size of X.
Here LoRA and core share one thin product on each side, results are added in place to the frozen product, and unused
gradients are not computed:

    forward    N·(2·m·n + 2·(r + k)·(m + n)) flops       saves X V and X Aᵀ, N x (r + k); X too if A is trained
    backward   the same, plus 2·N·r·n for A and 2·N·r·m for B; no gradient of W, U or V
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gorp.core.frame import Frame


class LowRankUpdate(nn.Module):
    """Layer that computes y = inner(x) + U C Vᵀ x, with C trainable and U, V fixed between refreshes.

    dL/dC = Uᵀ G V is computed from two thin products, without G and without X: only Vᵀ x is saved, k numbers per token.
    C is zero when created and after every fold, and U and V are zero until the first refresh, so a new layer computes
    exactly the output of the layer that it wraps.

    Args:
        inner: An `nn.Linear`, or a PEFT layer around one.
        rank: k.
    """

    left: Tensor
    right: Tensor

    def __init__(self, inner: nn.Module, *, rank: int) -> None:
        super().__init__()
        linear = linear_of(inner)
        m, n = linear.weight.shape
        dtype = torch.promote_types(linear.weight.dtype, torch.float32)  # bfloat16 would lose small steps of C
        self.inner = inner
        self._lora = plain_lora(inner)
        # Only a plain linear layer and plain LoRA can be computed together with the core. With dropout before A, or a
        # forward method of its own, `inner` runs separately.
        self._joined = type(linear).forward is nn.Linear.forward and (inner is linear or self._lora is not None)
        self.core = nn.Parameter(torch.zeros(rank, rank, dtype=dtype, device=linear.weight.device))
        self.register_buffer("left", torch.zeros(m, rank, dtype=dtype, device=linear.weight.device))
        self.register_buffer("right", torch.zeros(n, rank, dtype=dtype, device=linear.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Map `x`, ... x n, to ... x m. Products over N, m or n run in the dtype of `x`, k x k products in C's."""
        linear, device = linear_of(self.inner), x.device.type
        frozen = not linear.weight.requires_grad and (linear.bias is None or not linear.bias.requires_grad)
        joined = self._joined and frozen
        inner_output = None if joined else self.inner(x)
        # Autocast does not act inside a custom function. So x is cast here; autograd casts its gradient back.
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            if inner_output is not None:
                start = inner_output.to(x.dtype)
                return LowRankProducts.apply(x, None, start, self.core, self.left, self.right, *NO_LORA)
            weight, bias = linear.weight.to(x.dtype), None if linear.bias is None else linear.bias.to(x.dtype)
            return LowRankProducts.apply(x, weight, bias, self.core, self.left, self.right, *(self._lora or NO_LORA))

    @property
    def weight(self) -> Tensor:
        """W of the innermost linear layer. Models read its dtype (T5 that of `wo`)."""
        return linear_of(self.inner).weight

    @property
    def frame(self) -> Frame:
        """The current frame U, V."""
        return Frame(left=self.left, right=self.right)

    @torch.no_grad()
    def fold(self, frame: Frame | None = None) -> tuple[Tensor, Tensor]:
        """Return U C, m x k, and V, n x k, the factors of a delta; set C to zero and the frame to `frame`, if given."""
        left, right = self.left @ self.core, self.right.clone()  # (m, k) @ (k, k)
        self.core.zero_()
        if frame is not None:
            self.left.copy_(frame.left)
            self.right.copy_(frame.right)
        return left, right


class LowRankProducts(torch.autograd.Function):
    """Compute Y = start + X Wᵀ + [s X Aᵀ, X V Cᵀ] [B, U]ᵀ, and the gradients of X, start, C, A and B.

    `x`, ... x n, `weight` and `start` have the same dtype, and products over N, m or n run in it. `core` may have
    another dtype, in which the k x k products run. There are two cases. Either `weight` is W and `start` is the bias, m
    numbers or None, without gradient; or `weight` is None and `start` is the output of the inner layer, ... x m. `down`
    and `up` are A and B, or both None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        start: Tensor | None,
        core: Tensor,
        left: Tensor,
        right: Tensor,
        down: Tensor | None,
        up: Tensor | None,
        scale: float,
    ) -> Tensor:
        rows, r = x.reshape(-1, x.shape[-1]), 0 if down is None else len(down)
        into, out = _concat(down, right.mT, dim=0).to(x.dtype), _concat(up, left, dim=1).to(x.dtype)  # [A; Vᵀ], [B, U]
        hidden = rows @ into.mT  # [X Aᵀ, X V]: (N, n) @ (n, r + k)
        inside = hidden[:, r:].to(core.dtype) @ core.mT  # X V Cᵀ: (N, k) @ (k, k)
        if weight is None:
            assert start is not None
            y = start.reshape(-1, start.shape[-1]).clone()  # a copy: the next lines add to it in place
        else:
            y = rows @ weight.mT if start is None else torch.addmm(start, rows, weight.mT)  # (N, n) @ (n, m)
        y.addmm_(_concat(scale * hidden[:, :r], inside.to(x.dtype), dim=1), out.mT)  # (N, r + k) @ (r + k, m)
        trained = ctx.needs_input_grad[6]  # whether A is trained; only its gradient needs X
        ctx.save_for_backward(x if trained else None, weight, hidden, core, left, right, down, up)
        ctx.scale, ctx.shape = scale, x.shape
        # Not a view: some models (Gemma 3n) modify the output in place, which autograd forbids for a view made here.
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[-1]))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, hidden, core, left, right, down, up = ctx.saved_tensors
        d, r = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1]), 0 if down is None else len(down)
        into, out = _concat(down, right.mT, dim=0).to(d.dtype), _concat(up, left, dim=1).to(d.dtype)  # [A; Vᵀ], [B, U]
        outside = d @ out  # [D B, D U]: (N, m) @ (m, r + k)
        d_hidden, d_inside = ctx.scale * outside[:, :r], outside[:, r:].to(core.dtype)  # s D B and D U
        d_core = d_inside.mT @ hidden[:, r:].to(core.dtype)  # dL/dC = (D U)ᵀ X V: (k, N) @ (N, k)
        d_x = d_down = d_up = None
        if x is not None and down is not None:
            d_down = (d_hidden.mT @ x.reshape(-1, x.shape[-1])).to(down.dtype)  # s (D B)ᵀ X: (r, N) @ (N, n)
        if up is not None:
            d_up = (d.mT @ hidden[:, :r]).to(up.dtype).mul_(ctx.scale)  # s Dᵀ X Aᵀ: (m, N) @ (N, r)
        if ctx.needs_input_grad[0]:
            thin = _concat(d_hidden, (d_inside @ core).to(d.dtype), dim=1)  # [s D B, D U C]: N x (r + k)
            # dL/dX = D W + [s D B, D U C] [A; Vᵀ]: (N, m) @ (m, n) + (N, r + k) @ (r + k, n)
            d_x = thin @ into if weight is None else (d @ weight).addmm_(thin, into)
            d_x = d_x.reshape(ctx.shape)
        d_start = grad_outputs[0] if weight is None else None  # Y = start + ..., so dL/dstart = D; a bias is frozen
        return d_x, None, d_start, d_core, None, None, d_down, d_up, None


NO_LORA = None, None, 1.0
"""A, B and s for a layer without LoRA."""


def _concat(first: Tensor | None, second: Tensor, *, dim: int) -> Tensor:
    """Concatenate along `dim` in the dtype of `second`; return `second` if there is no first."""
    return second if first is None or first.numel() == 0 else torch.cat([first.to(second.dtype), second], dim=dim)


def plain_lora(layer: Any) -> tuple[Tensor, Tensor, float] | None:
    """Return A, B and s of a PEFT layer that adds s B A x only: no dropout, no variant, one adapter. None otherwise."""
    factors = getattr(layer, "lora_A", {})  # a plain nn.Linear has no factors
    if len(factors) != 1:
        return None
    (name,) = factors
    down, up, dropout = factors[name], layer.lora_B[name], layer.lora_dropout[name]
    if not isinstance(dropout, nn.Identity) or layer.lora_variant or up.bias is not None:
        return None
    return down.weight, up.weight, layer.scaling[name]


def linear_of(layer: nn.Module) -> nn.Linear:
    """Return the `nn.Linear` inside a layer that is wrapped by gorp, by PEFT, by both, or not at all."""
    if isinstance(layer, LowRankUpdate):
        return linear_of(layer.inner)
    base = getattr(layer, "base_layer", layer)  # PEFT's name for the wrapped layer
    assert isinstance(base, nn.Linear), f"{type(layer).__name__} contains no linear layer"
    return base


def wrap(model: nn.Module, names: list[str], *, rank: int) -> dict[str, LowRankUpdate]:
    """Replace each named layer by a `LowRankUpdate` around it; return the new layers by name."""
    wrapped = {name: LowRankUpdate(model.get_submodule(name), rank=rank) for name in names}
    for name, layer in wrapped.items():
        replace(model, name, layer)
    return wrapped


def unwrap(model: nn.Module) -> None:
    """Restore every layer that `wrap` wrapped."""
    for name, layer in list(model.named_modules()):  # a list, because the loop replaces modules
        if isinstance(layer, LowRankUpdate):
            replace(model, name, layer.inner)


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Set the submodule called `name` to `layer`."""
    parent, _, child = name.rpartition(".")
    setattr(cast(nn.Module, model.get_submodule(parent)), child, layer)
