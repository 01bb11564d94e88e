"""The same code on one rank and on many: with one rank, communication disappears."""

import torch.distributed as dist
from torch import Tensor


def num_ranks() -> int:
    """Ranks of the default process group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the default process group, from 0; 0 where there is none."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(x: Tensor) -> Tensor:
    """Σ over ranks of `x`, the same on every rank. `x` itself is left alone."""
    if num_ranks() == 1:
        return x
    total = x.contiguous().clone()
    dist.all_reduce(total)
    return total


def broadcast_from_owner(x: Tensor) -> Tensor:
    """The `x` of rank 0, its owner, on every rank, bit for bit.

    Ranks may disagree on an SVD (signs, order of equal values). The copy is contiguous on purpose: SVD and QR
    return column-major matrices, and a broadcast sends memory as it lies, so that without it the other ranks
    would receive a scrambled matrix, with no error.
    """
    if num_ranks() == 1:
        return x
    copy = x.contiguous().clone()
    dist.broadcast(copy, src=0)
    return copy
