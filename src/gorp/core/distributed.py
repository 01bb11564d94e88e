"""Communication between ranks. On one rank every function here returns at once, so callers need no special case."""

import torch.distributed as dist
from torch import Tensor


def num_ranks() -> int:
    """Return the number of ranks of the default process group; 1 if there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank in the default process group; 0 if there is no process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum of `x` over all ranks, the same on every rank. `x` itself is not changed."""
    if num_ranks() == 1:
        return x
    total = x.contiguous().clone()  # all_reduce works in place
    dist.all_reduce(total)
    return total


def broadcast_from_owner(x: Tensor) -> Tensor:
    """Return the `x` of rank 0 on every rank, bit for bit.

    Ranks may compute different SVDs of the same matrix (signs, order of equal singular values), so one rank's result
    is used by all.
    """
    if num_ranks() == 1:
        return x
    # SVD and QR return column-major matrices, and a broadcast sends memory in storage order. Without `contiguous()` the
    # other ranks would receive a scrambled matrix, and no error would be raised.
    copy = x.contiguous().clone()
    dist.broadcast(copy, src=0)
    return copy
