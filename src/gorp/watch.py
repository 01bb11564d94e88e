"""Watching a linear layer: the tap that shows X and D, and the probe that adds up one combination of them.

X, N x n   inputs of the layer, one row a token          D, N x m   gradients of its outputs
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

from gorp.compiled import enter, observe
from gorp.linalg import coarsest


class Watch(ABC):
    """Sees X and D of one layer in every backward pass, in compiled models too.

    Under gradient checkpointing X is not held from the first forward on: it is saved for the backward pass as autograd
    saves tensors, so that a checkpoint drops it and computes it again.

    Args:
        layer: A linear layer, wrapped or not.
    """

    holds = False
    """Whether X and D are held beyond the backward pass."""

    def __init__(self, layer: nn.Module) -> None:
        self._others: list[Watch] = getattr(layer, "watches", [])
        self._inputs: list[Tensor] = []
        self._number = enter(self)
        self._handle: RemovableHandle = layer.register_forward_hook(self._watch)
        self._others.append(self)

    @abstractmethod
    def wants_input(self) -> bool:
        """Whether X of the coming forward pass is wanted."""

    @abstractmethod
    def saw(self, x: Tensor, d: Tensor) -> None:
        """Take X, N x n, and D, N x m, of one micro-batch."""

    def keep(self, x: Tensor) -> None:
        """Hold X of a compiled forward pass until its backward pass, the last forward first."""
        self._inputs.append(x)

    def see(self, x: Tensor | None, d: Tensor) -> None:
        """Take D of a compiled backward pass; X from there, or the one that was kept."""
        if not self.wants_input():
            return
        if x is None and self._inputs:
            x = self._inputs.pop()
        if x is not None and self.holds:
            x, d = x.clone(), d.clone()  # the compiler may use their memory again
        if x is not None:
            self.saw(x, d)

    def remove(self) -> None:
        """Leave the layer as it was."""
        self._handle.remove()
        self._others.remove(self)

    def _watch(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if torch.compiler.is_compiling():
            if getattr(layer, "fused", False):
                return None  # its operation shows X and D
            x = args[0].reshape(-1, args[0].shape[-1])
            return observe(output.reshape(-1, output.shape[-1]), x, self._number).reshape(output.shape)
        if not output.requires_grad or not self.wants_input():
            return None
        return Observed.apply(output, args[0].detach(), self)


class Observed(torch.autograd.Function):
    """`Observed.apply(y, x, watch)`: y, unchanged; in the backward pass `watch` sees X and D."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, watch: Watch) -> Tensor:
        ctx.save_for_backward(x)
        ctx.watch = watch
        # Not a view: some models (Gemma 3n, Falcon) write into it in place, which autograd refuses for a view.
        return torch.ops.aten._unsafe_view(y, y.shape)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        d, (x,) = grad_outputs[0], ctx.saved_tensors
        ctx.watch.saw(x.reshape(-1, x.shape[-1]), d.detach().reshape(-1, d.shape[-1]))
        return d, None, None


class GradientTap(Watch):
    """Shows X and D, for the forward passes made while it is open.

    The pairs live from the layer's forward to `take`, so only taps of layers that are due should be open.
    """

    holds = True

    def __init__(self, layer: nn.Module) -> None:
        self.open = False
        self._pairs: list[tuple[Tensor, Tensor]] = []
        super().__init__(layer)

    def wants_input(self) -> bool:
        """While it is open."""
        return self.open

    def saw(self, x: Tensor, d: Tensor) -> None:
        """Keep both."""
        self._pairs.append((x, d))

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """The (X, D) seen since the last call, N x n and N x m each, one pair a micro-batch."""
        pairs, self._pairs = self._pairs, []
        self._inputs.clear()
        return pairs


class GradientProbe(Watch):
    """Takes ψᵀ G, one fixed combination of the rows of a layer's gradient, as backward passes go by.

    2·N·(m + n) flops a pass. ψ is a Weyl sequence in [-1, 1), the same on every rank and device.
    """

    made_in: torch.dtype | None = None
    """The dtype of X or D, whichever is coarser, in the last pass; under autocast not the weight's."""

    def __init__(self, layer: nn.Module) -> None:
        self._weights: Tensor | None = None
        self._row: Tensor | None = None
        super().__init__(layer)

    def wants_input(self) -> bool:
        """Always."""
        return True

    def saw(self, x: Tensor, d: Tensor) -> None:
        """Add (D ψ)ᵀ X."""
        if self._weights is None:
            self._weights = torch.arange(1, d.shape[1] + 1, device=d.device) * 2654435761 % 2**32 / 2**31 - 1
        self.made_in = coarsest(x.dtype, d.dtype)
        combined = (d @ self._weights.to(d.dtype)).to(x.dtype)  # D ψ
        row = (combined @ x).to(torch.promote_types(x.dtype, torch.float32))
        self._row = row if self._row is None else self._row + row

    def take(self) -> Tensor | None:
        """ψᵀ G of all micro-batches since the last call, n numbers; None where there was no backward pass."""
        row, self._row = self._row, None
        self._inputs.clear()
        return row
