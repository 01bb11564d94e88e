"""Flat names for what is kept: tensors by `prefix/key`."""

from collections.abc import Mapping

from torch import Tensor


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`prefix/key` -> tensor."""
    return {f"{prefix}/{key}": tensor for key, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those under `prefix/`, with their plain keys."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in tensors.items() if key.startswith(f"{prefix}/")}


def footprint(state: Mapping[str, Tensor]) -> int:
    """Bytes that a method carries from task to task."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
