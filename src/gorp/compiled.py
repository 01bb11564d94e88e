"""The same operations for `torch.compile`: opaque to the compiler, so that one graph serves every step.

Which layer shows its gradient changes from step to step. A compiler would make a graph for each pattern of open taps,
and break the graph at each hook. Here what is watched is looked up when the operation runs: a layer is a number in the
graph, and a ledger that is no part of it leads from the number to the watchers.

    gorp::branches    what `gorp.fused.FusedBranches` does, and shows X and D to the watchers of its layer
    gorp::observe     y, unchanged; in the backward pass X and D of the layer that gave y are shown to one watcher

An operation may not return its own inputs, so `observe` copies y and D; it serves the layers that are not fused.
"""

from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from gorp.fused import backward_products, forward_products


class Shown(Protocol):
    """What the ledger leads to."""

    def wants_input(self) -> bool:
        """Whether X is wanted beyond the forward pass though the operation would not keep it."""
        ...

    def keep(self, x: Tensor) -> None:
        """Take X of a forward pass."""
        ...

    def see(self, x: Tensor | None, d: Tensor) -> None:
        """Take D of a backward pass, with X where the operation kept it."""
        ...


_ledger: WeakValueDictionary[int, Shown] = WeakValueDictionary()
_numbers = iter(range(1, 2**62))


def enter(shown: Shown) -> int:
    """Give `shown` a number that no other has had; the ledger forgets it when nobody else holds it."""
    number = next(_numbers)
    _ledger[number] = shown
    return number


@torch.library.custom_op("gorp::branches", mutates_args=())
def branches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    core: Tensor,
    left: Tensor,
    right: Tensor,
    down: Tensor | None,
    up: Tensor | None,
    scale: float,
    number: int,
) -> tuple[Tensor, Tensor]:
    """Y and [X Aᵀ, X V] of N x n rows; arguments as `FusedBranches` has them, and the layer's number."""
    shown = _ledger.get(number)
    if shown is not None and shown.wants_input():
        shown.keep(x.clone())  # the compiler may use its memory again
    return forward_products(x, weight, bias, core, left, right, down, up, scale)


@torch.library.custom_op("gorp::branches_backward", mutates_args=())
def branches_backward(
    d: Tensor,
    x: Tensor | None,
    weight: Tensor,
    hidden: Tensor,
    core: Tensor,
    left: Tensor,
    right: Tensor,
    down: Tensor | None,
    up: Tensor | None,
    scale: float,
    need_input: bool,
    number: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, core, A and B; empty tensors for those that are not there."""
    if (shown := _ledger.get(number)) is not None:
        shown.see(x, d)
    found = backward_products(d, x, weight, hidden, core, left, right, down, up, scale, need_input=need_input)
    d_x, d_core, d_down, d_up = (d.new_zeros(0) if part is None else part for part in found)
    return d_x, d_core, d_down, d_up


@torch.library.custom_op("gorp::observe", mutates_args=())
def observe(y: Tensor, x: Tensor, number: int) -> Tensor:
    """A copy of y."""
    return y.clone()


@torch.library.custom_op("gorp::observe_backward", mutates_args=())
def observe_backward(d: Tensor, x: Tensor, number: int) -> Tensor:
    """A copy of D, shown with X to what the number stands for."""
    if (shown := _ledger.get(number)) is not None:
        shown.see(x, d)
    return d.clone()


@branches.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Any, core: Tensor, left: Any, right: Any, down: Tensor | None, *rest: Any
) -> Any:
    r = 0 if down is None else down.shape[0]
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], r + core.shape[0])


@branches_backward.register_fake
def _(
    d: Tensor,
    x: Any,
    weight: Tensor,
    hidden: Any,
    core: Tensor,
    left: Any,
    right: Any,
    down: Tensor | None,
    up: Tensor | None,
    scale: float,
    need_input: bool,
    number: int,
) -> Any:
    d_x = d.new_empty(d.shape[0], weight.shape[1]) if need_input else d.new_empty(0)
    factors = (d.new_empty(0) if part is None else torch.empty_like(part) for part in (down, up))
    return d_x, torch.empty_like(core), *factors


@observe.register_fake
def _(y: Tensor, x: Tensor, number: int) -> Tensor:
    return torch.empty_like(y)


@observe_backward.register_fake
def _(d: Tensor, x: Tensor, number: int) -> Tensor:
    return torch.empty_like(d)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, core, left, right, down, up, ctx.scale, ctx.number = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(None if down is None else x, weight, output[1], core, left, right, down, up)


def _branches_backward(ctx: Any, d: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, hidden, core, left, right, down, up = ctx.saved_tensors
    need = ctx.needs_input_grad[0]
    d_x, d_core, d_down, d_up = branches_backward(
        d, x, weight, hidden, core, left, right, down, up, ctx.scale, need, ctx.number
    )
    lora = (None, None) if down is None else (d_down, d_up)
    return d_x if need else None, None, None, d_core, None, None, *lora, None, None


def _keep_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, ctx.number = inputs
    ctx.save_for_backward(x)


def _observe_backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None]:
    return observe_backward(d, *ctx.saved_tensors, ctx.number), None, None


branches.register_autograd(_branches_backward, setup_context=_keep_for_backward)
observe.register_autograd(_observe_backward, setup_context=_keep_input)
