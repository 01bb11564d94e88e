"""The full-rank branch of a linear layer."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from gorp.compiled import branches, enter
from gorp.frame import Frame
from gorp.fused import FusedBranches
from gorp.watch import Watch


class LowRankUpdate(nn.Module):
    """y = inner(x) + U C (Vᵀ x), with C trainable and U, V frozen between refreshes.

    Autograd gives dL/dC = Uᵀ G V from two thin products, and needs neither a weight gradient nor to keep X: the
    branch stores Vᵀ x, k numbers a token. C is zero at birth and after every fold, U and V are zero until the first
    refresh, so a new layer answers exactly as the one it wraps.

    Args:
        inner: An `nn.Linear`, or a PEFT layer around one.
        rank: k.
    """

    left: Tensor
    right: Tensor

    def __init__(self, inner: nn.Module, *, rank: int) -> None:
        super().__init__()
        weight = linear_of(inner).weight
        m, n = weight.shape
        dtype = torch.promote_types(weight.dtype, torch.float32)  # bfloat16 would lose small steps of C
        self.inner = inner
        self._lora = plain_lora(inner)
        self._fusable = type(linear_of(inner)) is nn.Linear and (self._lora is not None or type(inner) is nn.Linear)
        self.watches: list[Watch] = []
        """Who sees X and D of the compiled operation; the others have hooks."""
        self.number = enter(self)
        self.core = nn.Parameter(torch.zeros(rank, rank, dtype=dtype, device=weight.device))
        self.register_buffer("left", torch.zeros(m, rank, dtype=dtype, device=weight.device))
        self.register_buffer("right", torch.zeros(n, rank, dtype=dtype, device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """`x`, ... x n, to ... x m; the thin products run in the dtype of `x`, the core in its own.

        In one fused operation where the layer below is a frozen `nn.Linear` with at most a plain LoRA pair; else branch
        by branch.
        """
        linear = linear_of(self.inner)
        if not self.fused:
            return self.branch_by_branch(x)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        down, up, scale = (None, None, 1.0) if self._lora is None else self._lora
        bias = None if linear.bias is None else linear.bias.to(x.dtype)
        with torch.autocast(device, enabled=False):
            operands = linear.weight.to(x.dtype), bias, self.core, self.left, self.right, down, up, scale
            if torch.compiler.is_compiling():
                y, _ = branches(x.reshape(-1, x.shape[-1]), *operands, self.number)
                return y.reshape(*x.shape[:-1], -1)
            return FusedBranches.apply(x, *operands)

    @property
    def fused(self) -> bool:
        """Whether the layer and its branches are one operation."""
        return self._fusable and not linear_of(self.inner).weight.requires_grad

    def wants_input(self) -> bool:
        """Whether a watch needs X, which a core alone does not keep."""
        return self._lora is None and any(watch.wants_input() for watch in self.watches)

    def keep(self, x: Tensor) -> None:
        """Give X to the watches that want it."""
        for watch in self.watches:
            if watch.wants_input():
                watch.keep(x)

    def see(self, x: Tensor | None, d: Tensor) -> None:
        """Show D, and X where it was kept, to the watches."""
        for watch in self.watches:
            watch.see(x, d)

    def branch_by_branch(self, x: Tensor) -> Tensor:
        """The same, the obvious way: what is below, plus U (C (Vᵀ x))."""
        y = self.inner(x)
        inside = (x @ self.right.to(x.dtype)).to(self.core.dtype)  # Vᵀ x, ... x k
        return y + (inside @ self.core.mT).to(y.dtype) @ self.left.mT.to(y.dtype)  # U C Vᵀ x

    @property
    def weight(self) -> Tensor:
        """W, of the layer at the bottom: models read its dtype (T5 does, of `wo`)."""
        return linear_of(self.inner).weight

    @property
    def frame(self) -> Frame:
        """The current U, V."""
        return Frame(left=self.left, right=self.right)

    @torch.no_grad()
    def fold(self, frame: Frame | None = None) -> tuple[Tensor, Tensor]:
        """Take U C and V out as the factors of a delta, m x k and n x k; C becomes zero and the frame `frame`."""
        left, right = self.left @ self.core, self.right.clone()
        self.core.zero_()
        if frame is not None:
            self.left.copy_(frame.left)
            self.right.copy_(frame.right)
        return left, right


def plain_lora(layer: Any) -> tuple[Tensor, Tensor, float] | None:
    """A, B and s of a PEFT layer that adds s B A x and nothing else: no dropout, no variant, no second adapter."""
    factors = getattr(layer, "lora_A", {})
    if len(factors) != 1:
        return None
    (name,) = factors
    down, up, dropout = factors[name], layer.lora_B[name], layer.lora_dropout[name]
    if not isinstance(dropout, nn.Identity) or layer.lora_variant or up.bias is not None:
        return None
    return down.weight, up.weight, layer.scaling[name]


def linear_of(layer: nn.Module) -> nn.Linear:
    """The `nn.Linear` at the bottom of a layer wrapped by us, by PEFT, or not at all."""
    if isinstance(layer, LowRankUpdate):
        return linear_of(layer.inner)
    base = getattr(layer, "base_layer", layer)
    assert isinstance(base, nn.Linear), f"no linear layer below {type(layer).__name__}"
    return base


def wrap(model: nn.Module, names: list[str], *, rank: int) -> dict[str, LowRankUpdate]:
    """Put a `LowRankUpdate` around each named layer; return them by name."""
    wrapped = {name: LowRankUpdate(model.get_submodule(name), rank=rank) for name in names}
    for name, layer in wrapped.items():
        replace(model, name, layer)
    return wrapped


def unwrap(model: nn.Module) -> None:
    """Put back every layer that `wrap` wrapped."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LowRankUpdate):
            replace(model, name, layer.inner)


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Make `layer` the submodule called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(cast(nn.Module, model.get_submodule(parent)), child, layer)
