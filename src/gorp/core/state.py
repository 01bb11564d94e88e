"""Flat dictionaries of tensors: group several state dicts in one under `prefix/key` names."""

from collections.abc import Mapping

from torch import Tensor


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` with every key renamed to `prefix/key`."""
    return {f"{prefix}/{key}": tensor for key, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose keys start with `prefix/`, with the prefix removed."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in tensors.items() if key.startswith(f"{prefix}/")}


def footprint(state: Mapping[str, Tensor]) -> int:
    """Return the size of `state` in bytes: what a method keeps from task to task."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
