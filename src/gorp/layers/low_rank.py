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
        self._narrow: tuple[Any, Tensor, Tensor] | None = None  # U and V in the dtype of the products

    def forward(self, x: Tensor) -> Tensor:
        """Map `x`, ... x n, to ... x m. All products run in the dtype of `x`, as LoRA's do."""
        linear, device = linear_of(self.inner), x.device.type
        frozen = not linear.weight.requires_grad and (linear.bias is None or not linear.bias.requires_grad)
        joined = self._joined and frozen
        inner_output = None if joined else self.inner(x)
        # Autocast does not cast the arguments of a custom function, so all are cast here and in the function.
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        left, right = self._frame_in(x.dtype)
        if inner_output is not None:
            return LowRankProducts.apply(x, None, inner_output.to(x.dtype), self.core, left, right, *NO_LORA)
        weight, bias = linear.weight.to(x.dtype), None if linear.bias is None else linear.bias.to(x.dtype)
        return LowRankProducts.apply(x, weight, bias, self.core, left, right, *(self._lora or NO_LORA))

    def _frame_in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return U and V in `dtype`, converted once for each frame: in each pass it would cost as much as a product."""
        left, right = self.left, self.right
        if dtype == left.dtype:
            return left, right
        if torch.compiler.is_compiling():
            return left.to(dtype), right.to(dtype)
        made_of = dtype, id(left), left._version, id(right), right._version
        if self._narrow is None or self._narrow[0] != made_of:
            self._narrow = made_of, left.to(dtype), right.to(dtype)
        return self._narrow[1:]

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
    """Compute Y = start + X Wᵀ + [X Aᵀ, X V Cᵀ] [s B, U]ᵀ, and the gradients of X, start, C, A and B.

    `x`, ... x n, `weight`, `start`, `left` and `right` have the same dtype, and all products run in it. The factors may
    have a wider one, in which their gradients are returned. There are two cases. Either `weight` is W and `start` is
    the bias, m numbers or None, without gradient; or `weight` is None and `start` is the output of the inner layer,
    ... x m. `down` and `up` are A and B, or both None.
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
        rows, r, into, out = x.reshape(-1, x.shape[-1]), 0, right.mT, left
        if down is not None and up is not None:
            r, into = len(down), torch.cat([down.to(x.dtype), right.mT])  # [A; Vᵀ], (r + k) x n
            out = torch.cat([(scale * up).to(x.dtype), left], dim=1)  # [s B, U], m x (r + k)
        c = core.to(x.dtype)
        hidden = rows @ into.mT  # [X Aᵀ, X V]: (N, n) @ (n, r + k)
        if weight is None:
            assert start is not None
            y = start.reshape(-1, start.shape[-1]).clone()  # a copy: the next lines add to it in place
        else:
            y = rows @ weight.mT if start is None else torch.addmm(start, rows, weight.mT)  # (N, n) @ (n, m)
        inside = hidden[:, r:] @ c.mT  # X V Cᵀ: (N, k) @ (k, k)
        y.addmm_(torch.cat([hidden[:, :r], inside], dim=1) if r else inside, out.mT)  # (N, r + k) @ (r + k, m)
        # Only the gradient of a trained A needs X.
        ctx.save_for_backward(x if ctx.needs_input_grad[6] else None, weight, hidden, c, into, out)
        ctx.scale, ctx.shape, ctx.r = scale, x.shape, r
        ctx.dtypes = [None if factor is None else factor.dtype for factor in (core, down, up)]
        # Not a view: some models (Gemma 3n) modify the output in place, which autograd forbids for a view made here.
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[-1]))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, hidden, c, into, out = ctx.saved_tensors
        of_core, of_down, of_up = ctx.dtypes
        d, r = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1]), ctx.r
        outside = d @ out  # [s D B, D U]: (N, m) @ (m, r + k)
        d_core = (outside[:, r:].mT @ hidden[:, r:]).to(of_core)  # dL/dC = (D U)ᵀ X V: (k, N) @ (N, k)
        d_x = d_down = d_up = None
        if x is not None:
            d_down = (outside[:, :r].mT @ x.reshape(-1, x.shape[-1])).to(of_down)  # s (D B)ᵀ X: (r, N) @ (N, n)
        if r and ctx.needs_input_grad[7]:
            d_up = (d.mT @ hidden[:, :r]).to(of_up).mul_(ctx.scale)  # s Dᵀ X Aᵀ: (m, N) @ (N, r)
        if ctx.needs_input_grad[0]:
            thin = outside[:, r:] @ c  # D U C: (N, k) @ (k, k)
            thin = torch.cat([outside[:, :r], thin], dim=1) if r else thin  # [s D B, D U C], N x (r + k)
            # dL/dX = D W + [s D B, D U C] [A; Vᵀ]: (N, m) @ (m, n) + (N, r + k) @ (r + k, n)
            d_x = thin @ into if weight is None else (d @ weight).addmm_(thin, into)
            d_x = d_x.reshape(ctx.shape)
        d_start = grad_outputs[0] if weight is None else None  # Y = start + ..., so dL/dstart = D; a bias is frozen
        return d_x, None, d_start, d_core, None, None, d_down, d_up, None


NO_LORA = None, None, 1.0
"""A, B and s for a layer without LoRA."""


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
