"""Watching a linear layer: X and D of its training passes, given to whoever needs them.

X, N x n   inputs of the layer, one row a token          D, N x m   gradients of its outputs

    forward     a hook puts a node of autograd's graph behind the output: y is unchanged, X saved for the backward pass
    backward    the node receives D, and calls `add(X, D)` of its watch

Under `torch.compile` hook and node become part of the graph, and the call is `gorp::watch`, an operation that is opaque
to the compiler. Which watches are on changes from step to step; that is read when the operation runs, so that one graph
serves every step.

`ForwardWatch` sees X and the outputs Y, N x m, as forward passes go by, with gradients or without, padding left out: a
token of an encoder counts where `attention_mask` says so, a token of a decoder where it has a label, or where
`decoder_attention_mask` says so.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

from gorp.core.linalg import coarsest
from gorp.core.outputs import IGNORED


class Watch(ABC):
    """Receives X and D of one layer in every backward pass while it is on, in compiled models too.

    X is saved as autograd saves tensors, so that gradient checkpointing drops it and computes it again; a reference
    held by the hook would keep the inputs of every layer from the first forward pass on. A compiled model saves X of
    every layer that has a watch, on or not.

    Args:
        layer: A linear layer, wrapped or not.
    """

    on: bool = True
    """Whether X and D are wanted; not to be changed between a forward pass and its backward pass."""

    def __init__(self, layer: nn.Module) -> None:
        self._number = next(_numbers)
        _watches[self._number] = self
        self._handle: RemovableHandle = layer.register_forward_hook(self._watch)

    @abstractmethod
    def add(self, x: Tensor, d: Tensor) -> None:
        """Take X, N x n, and D, N x m, of one micro-batch."""

    def remove(self) -> None:
        """Leave the layer as it was."""
        self._handle.remove()

    def _watch(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        # A compiled graph that read `on` would be compiled again for every set of watches that are on.
        if not output.requires_grad or not (torch.compiler.is_compiling() or self.on):
            return None
        return Watched.apply(output, args[0].detach(), self._number)


_watches: WeakValueDictionary[int, Watch] = WeakValueDictionary()
"""By number: a compiled graph holds numbers and tensors, no other objects."""
_numbers = iter(range(2**62))


class Watched(torch.autograd.Function):
    """`Watched.apply(y, x, number)`: y, unchanged; in the backward pass the watch of this number gets X and D."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, number: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.number = number
        # Not a view: some models (Gemma 3n, Falcon) write into it in place, which autograd refuses for a view.
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
        _add(x_rows, d_rows, ctx.number)
        return d, None, None


def _add(x: Tensor, d: Tensor, number: int) -> None:
    watch = _watches.get(number)
    if watch is not None and watch.on:
        watch.add(x, d)


torch.library.define("gorp::watch", "(Tensor x, Tensor d, int number) -> Tensor")


@torch.library.impl("gorp::watch", "default")
def _(x: Tensor, d: Tensor, number: int) -> Tensor:
    """Give X and D to the watch; the result, which the gradient then depends on, keeps the call in the graph."""
    _add(x.clone(), d.clone(), number)  # copies: the compiler may use the memory of x and d again
    return d.clone()  # an operation may not return its own input


@torch.library.register_fake("gorp::watch")
def _(x: Tensor, d: Tensor, number: int) -> Tensor:
    return torch.empty_like(d)


class PairWatch(Watch):
    """Keeps the pairs of X and D from the backward pass to `take`. Off at first: only layers that are due are on."""

    on = False

    def __init__(self, layer: nn.Module) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        super().__init__(layer)

    def add(self, x: Tensor, d: Tensor) -> None:
        """Keep both."""
        self._pairs.append((x, d))

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """The (X, D) added since the last call, N x n and N x m each, one pair a micro-batch."""
        pairs, self._pairs = self._pairs, []
        return pairs


class RowWatch(Watch):
    """Adds up ψᵀ G, one fixed combination of the rows of a layer's gradient G = Dᵀ X.

    2·N·(m + n) flops a pass. ψ is a Weyl sequence in [-1, 1), the same on every rank and device.
    """

    made_in: torch.dtype | None = None
    """The dtype of X or D, whichever is coarser, in the last pass; under autocast not the weight's."""

    def __init__(self, layer: nn.Module) -> None:
        self._weights: Tensor | None = None
        self._row: Tensor | None = None
        super().__init__(layer)

    def add(self, x: Tensor, d: Tensor) -> None:
        """Add (D ψ)ᵀ X."""
        if self._weights is None:
            # ψ_i = frac(i · 0.618...) · 2 - 1, in integers: a float product would differ between devices
            self._weights = torch.arange(1, d.shape[1] + 1, device=d.device) * 2654435761 % 2**32 / 2**31 - 1
        self.made_in = coarsest(x.dtype, d.dtype)
        combined = (d @ self._weights.to(d.dtype)).to(x.dtype)  # D ψ: (N, m) @ (m,)
        row = (combined @ x).to(torch.promote_types(x.dtype, torch.float32))  # (N,) @ (N, n)
        self._row = row if self._row is None else self._row + row

    def take(self) -> Tensor | None:
        """ψᵀ G of all micro-batches since the last call, n numbers; None where there was no backward pass."""
        row, self._row = self._row, None
        return row


class ForwardWatch:
    """Shows what layers are given and what they answer, until `remove`.

    Args:
        model: Called with keyword arguments, as the Trainer does.
        layers: By any name.
        see: Called with that name, x and y, both detached, in every forward pass of the layer.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], see: Callable[[str, Tensor, Tensor], None]
    ) -> None:
        self._see = see
        self._masks: tuple[Tensor | None, Tensor | None] = (None, None)  # of the encoder's tokens, of the decoder's
        self._encoding = False
        self._encoded = 0  # where the encoder's output lies: the decoder's keys and values read it
        config: Any = getattr(model, "config", None)
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            *(layer.register_forward_hook(self._hook(name)) for name, layer in layers.items()),
        ]
        if getattr(config, "is_encoder_decoder", False):
            encoder: nn.Module = model.get_encoder()  # pyright: ignore[reportCallIssue]
            self._handles.append(encoder.register_forward_pre_hook(self._enter))
            self._handles.append(encoder.register_forward_hook(self._leave))
        else:
            self._encoding = True  # all tokens are those of `attention_mask`

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask, labels = kwargs.get("attention_mask"), kwargs.get("labels")
        decoder = kwargs.get("decoder_attention_mask")
        if decoder is None and labels is not None and labels.dim() == 2:
            decoder = labels != IGNORED
        self._masks = _flags(mask), _flags(decoder)

    def _enter(self, _: nn.Module, args: Any) -> None:
        self._encoding = True

    def _leave(self, _: nn.Module, args: Any, output: Any) -> None:
        self._encoding, self._encoded = False, output[0].data_ptr()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            x, y = args[0].detach(), output.detach()
            mask = self._masks[0 if self._encoding or x.data_ptr() == self._encoded else 1]
            if mask is None or mask.shape != x.shape[:-1]:  # nothing is said of its tokens, as inside of experts
                self._see(name, x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]))
            else:
                self._see(name, x[mask], y[mask])

        return hook


def _flags(mask: Tensor | None) -> Tensor | None:
    """A mask of tokens, B x L, as true and false; None for masks of another kind."""
    return None if mask is None or mask.dim() != 2 else mask.bool()


@torch.no_grad()
def read_inputs(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Tensor]],
    see: Callable[[str, Tensor], None],
) -> None:
    """Show the inputs of layers over rows of a task: forward passes alone, without dropout.

    Args:
        model: As it is.
        layers: By any name.
        batches: Of the task, with labels.
        see: Called with a layer's name and its x, N x n, once a batch.
    """
    training = model.training
    model.eval()
    watch = ForwardWatch(model, layers, lambda name, x, _: see(name, x))
    try:
        for batch in batches:
            model(**batch)
    finally:
        watch.remove()
        model.train(training)
