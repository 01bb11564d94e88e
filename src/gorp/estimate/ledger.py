"""Count what torch code costs, operation by operation: arithmetic, bytes moved, bytes alive, bytes saved for backward.

It counts the same on real tensors and on tensors without data (the meta device, `FakeTensorMode`), so a prediction
comes from running the code that it predicts.

    seconds = Σ over operations of  max(flops / F, bytes / B, latency)          the roofline, eager mode

Attention counts as two products in the forward pass and five in the backward pass; views and allocations cost nothing.
"""

import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gorp.estimate.device import Device


class Ledger(TorchDispatchMode):
    """Count operations while the mode is active.

    Args:
        device: Its rates turn counts into seconds; None leaves `seconds` at zero.
    """

    def __init__(self, device: Device | None = None) -> None:
        super().__init__()
        self.device = device
        self.flops = 0
        """Floating-point operations of matrix products; a multiply-add is two."""
        self.bytes = 0
        """Bytes read and written by all operations, as if nothing stayed in a cache."""
        self.seconds = 0.0
        """Roofline time."""
        self.live = 0
        """Bytes allocated since the start and not freed."""
        self.peak = 0
        """The largest value of `live`."""
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        for tensor in inputs:
            self._ignore(tensor)
        for tensor in outputs:
            self._allocate(tensor)
        if not (func.is_view or func._overloadpacket in FREE):
            self._count(func, args, kwargs, out, sum(map(size_of, inputs)) + sum(map(size_of, outputs)))
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, moved: int) -> None:
        packet = func._overloadpacket
        count = FLOPS.get(packet) or flop_registry.get(packet)
        flops = count(*args, **kwargs, out_val=out) if count else 0
        self.flops += flops
        self.bytes += moved
        if self.device is not None:
            self.seconds += self.device.seconds(flops, moved)

    def _ignore(self, tensor: Tensor) -> None:
        """Leave out a tensor that was allocated before the start."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            weakref.finalize(storage, self._seen.discard, storage._cdata)

    def _allocate(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


class SavedTensors:
    """Count what autograd keeps from the forward pass for the backward pass, each storage once, without the weights.

    Args:
        model: Its parameters and buffers do not count: they are in memory anyway.
    """

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        self._seen = {t.untyped_storage()._cdata for t in held_tensors(model)}
        self._hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> "SavedTensors":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.bytes += storage.nbytes()
        return tensor


def held_tensors(model: nn.Module) -> Iterable[Tensor]:
    """Yield the parameters and buffers of a model, each once."""
    yield from model.parameters()
    yield from model.buffers()


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages behind `tensors`, each storage once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _product(total: Tensor, left: Tensor, right: Tensor, **_: Any) -> int:
    """Flops of `addmm_` and `baddbmm_`."""
    return 2 * math.prod(left.shape) * right.shape[-1]


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Flops of Q Kᵀ and of its product with V."""
    batch, heads, length, width = query.shape
    return 2 * batch * heads * length * key.shape[-2] * (width + value.shape[-1])


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Flops of Q Kᵀ once more, and of two products for the gradient of each of the two products."""
    return _attention(query, key, value) * 5 // 2


_aten = torch.ops.aten

FLOPS: dict[Any, Callable[..., int]] = {
    _aten.addmm_: _product,
    _aten.baddbmm_: _product,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Flops of the operations that torch's own counter leaves out."""

FREE = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.detach, _aten._unsafe_view, _aten.lift_fresh}
"""Operations that read and write no data."""
