"""Watches: record a linear layer's inputs X and output gradients D during training passes.

X, N x n   inputs of the layer, one row per token        D, N x m   gradients of its outputs

    forward     a forward hook adds an autograd node after the output: y is unchanged, X is saved for the backward pass
    backward    the node receives D and calls `add(X, D)` of its watch

Under `torch.compile`, hook and node become part of the graph, and the call to the watch is `gorp::watch`, an operator
that is opaque to the compiler. The operator reads at run time which watches are on, so one graph serves every step
although the set of active watches changes from step to step.

`ForwardWatch` records X and the outputs Y, N x m, in forward passes, with or without gradients and without padding: a
token of an encoder counts if `attention_mask` is set, a token of a decoder if it has a label or if
`decoder_attention_mask` is set.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

from gorp.core.linalg import coarsest
from gorp.core.outputs import IGNORED


class Watch(ABC):
    """Records X and D of one layer in every backward pass while it is on, in compiled models too.

    X is saved through autograd, so that gradient checkpointing drops it and computes it again. A reference held by the
    hook would instead keep the inputs of every layer from the first forward pass on. A compiled model saves X of every
    layer that has a watch, whether the watch is on or off.

    Args:
        layer: A linear layer, wrapped or not.
    """

    on: bool = True
    """Whether X and D are recorded. Do not change it between a forward pass and its backward pass."""

    def __init__(self, layer: nn.Module) -> None:
        self._number = next(_numbers)
        _watches[self._number] = self
        self._handle: RemovableHandle = layer.register_forward_hook(self._watch)

    @abstractmethod
    def add(self, x: Tensor, d: Tensor) -> None:
        """Record X, N x n, and D, N x m, of one micro-batch."""

    def remove(self) -> None:
        """Remove the hook from the layer."""
        self._handle.remove()

    def _watch(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        # While compiling, `on` is not read: the graph would be compiled again for every set of watches that are on.
        if not output.requires_grad or not (torch.compiler.is_compiling() or self.on):
            return None
        return Watched.apply(output, args[0].detach(), self._number)


_watches: WeakValueDictionary[int, Watch] = WeakValueDictionary()
"""Watches by number. A compiled graph can hold numbers and tensors, but no other objects."""
_numbers = iter(range(2**62))


class Watched(torch.autograd.Function):
    """`Watched.apply(y, x, number)` returns y unchanged; in the backward pass, watch `number` records X and D."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, number: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.number = number
        # Not a view: some models (Gemma 3n, Falcon) modify the output in place, which autograd forbids for a view that
        # a custom function returns.
        return torch.ops.aten._unsafe_view(y, y.shape)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        d, (x,) = grad_outputs[0], ctx.saved_tensors
        x_rows, d_rows = x.reshape(-1, x.shape[-1]), d.detach().reshape(-1, d.shape[-1])  # N x n, N x m
        if torch.compiler.is_compiling():
            return torch.ops.gorp.watch(x_rows, d_rows, ctx.number).reshape(d.shape), None, None
        _record(x_rows, d_rows, ctx.number)
        return d, None, None


def _record(x: Tensor, d: Tensor, number: int) -> None:
    """Pass X and D to watch `number`, if it still exists and is on."""
    watch = _watches.get(number)
    if watch is not None and watch.on:
        watch.add(x, d)


torch.library.define("gorp::watch", "(Tensor x, Tensor d, int number) -> Tensor")


@torch.library.impl("gorp::watch", "default")
def _(x: Tensor, d: Tensor, number: int) -> Tensor:
    """Record X and D. The gradient depends on the result, so the compiler cannot remove the call from the graph."""
    _record(x.clone(), d.clone(), number)  # copies: the compiler may reuse the memory of x and d
    return d.clone()  # a custom operator must not return its own input


@torch.library.register_fake("gorp::watch")
def _(x: Tensor, d: Tensor, number: int) -> Tensor:
    return torch.empty_like(d)


class PairWatch(Watch):
    """Stores X and D of each backward pass until `take`. Off by default: it is switched on when a refresh is due."""

    on = False

    def __init__(self, layer: nn.Module) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        super().__init__(layer)

    def add(self, x: Tensor, d: Tensor) -> None:
        """Store X and D."""
        self._pairs.append((x, d))

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """Return and clear the recorded (X, D), N x n and N x m, one pair per micro-batch."""
        pairs, self._pairs = self._pairs, []
        return pairs


class RowWatch(Watch):
    """Accumulates ψᵀ G, one fixed combination of the rows of a layer's gradient G = Dᵀ X.

    Costs 2·N·(m + n) flops per pass. ψ is a Weyl sequence in [-1, 1), the same on every rank and device.
    """

    compute_dtype: torch.dtype | None = None
    """The coarser of the dtypes of X and D in the last pass; under autocast it differs from the weight's dtype."""

    def __init__(self, layer: nn.Module) -> None:
        self._weights: Tensor | None = None
        self._row: Tensor | None = None
        super().__init__(layer)

    def add(self, x: Tensor, d: Tensor) -> None:
        """Add ψᵀ G = (D ψ)ᵀ X of one micro-batch."""
        if self._weights is None:
            # ψ_i = 2 · frac(i · 0.618...) - 1, in integers: a float product would differ between devices
            self._weights = torch.arange(1, d.shape[1] + 1, device=d.device) * 2654435761 % 2**32 / 2**31 - 1
        self.compute_dtype = coarsest(x.dtype, d.dtype)
        combined = (d @ self._weights.to(d.dtype)).to(x.dtype)  # D ψ: (N, m) @ (m,)
        row = (combined @ x).to(torch.promote_types(x.dtype, torch.float32))  # (N,) @ (N, n)
        self._row = row if self._row is None else self._row + row  # sum over micro-batches

    def take(self) -> Tensor | None:
        """Return and clear ψᵀ G summed over micro-batches, n numbers; None if there was no backward pass."""
        row, self._row = self._row, None
        return row


class ForwardWatch:
    """Records inputs and outputs of layers in forward passes, until `remove`.

    Args:
        model: The model; it must be called with keyword arguments, as the Trainer does.
        layers: Layers by any name.
        record: Called with that name, x and y, both detached, in every forward pass of the layer.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], record: Callable[[str, Tensor, Tensor], None]
    ) -> None:
        self._record = record
        self._masks: tuple[Tensor | None, Tensor | None] = (None, None)  # of encoder tokens, of decoder tokens
        self._in_encoder = False
        self._encoder_output = 0  # its address: cross-attention keys and values of the decoder have it as their input
        config: Any = getattr(model, "config", None)
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._read_masks, with_kwargs=True),
            *(layer.register_forward_hook(self._hook(name)) for name, layer in layers.items()),
        ]
        if getattr(config, "is_encoder_decoder", False):
            encoder: nn.Module = model.get_encoder()  # pyright: ignore[reportCallIssue]
            self._handles.append(encoder.register_forward_pre_hook(self._before_encoder))
            self._handles.append(encoder.register_forward_hook(self._after_encoder))
        else:
            self._in_encoder = True  # `attention_mask` applies to all tokens

    def remove(self) -> None:
        """Remove all hooks from the model."""
        for handle in self._handles:
            handle.remove()

    def _read_masks(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask, labels = kwargs.get("attention_mask"), kwargs.get("labels")
        decoder = kwargs.get("decoder_attention_mask")
        if decoder is None and labels is not None and labels.dim() == 2:
            decoder = labels != IGNORED  # position l of the decoder predicts label l
        self._masks = _as_bool(mask), _as_bool(decoder)

    def _before_encoder(self, _: nn.Module, args: Any) -> None:
        self._in_encoder = True

    def _after_encoder(self, _: nn.Module, args: Any, output: Any) -> None:
        self._in_encoder, self._encoder_output = False, output[0].data_ptr()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            x, y = args[0].detach(), output.detach()
            mask = self._masks[0 if self._in_encoder or x.data_ptr() == self._encoder_output else 1]
            if mask is None or mask.shape != x.shape[:-1]:  # no mask fits these tokens, as inside experts: record all
                self._record(name, x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]))
            else:
                self._record(name, x[mask], y[mask])

        return hook


def _as_bool(mask: Tensor | None) -> Tensor | None:
    """Return a token mask, B x L, as booleans; None for masks of any other shape."""
    return None if mask is None or mask.dim() != 2 else mask.bool()
