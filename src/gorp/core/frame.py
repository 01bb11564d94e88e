"""The frame U, V of a core: leading singular vectors of a weight's gradient outside S, and when it is refreshed.

G, m x n   gradient of the weight        U, m x k and V, n x k   leading singular vectors of G (I - S Sᵀ), so V is
                                         orthogonal to the protected basis S

`gorp.core.sketched` computes it without forming G.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from gorp.core.distributed import broadcast_from_owner
from gorp.core.linalg import orthonormalize, project_out_rows, rounding_floor


SQUARED = 4 * torch.finfo(torch.float64).eps ** 0.5
"""Relative size below which a singular value taken from B Bᵀ in float64 is rounding: B Bᵀ holds squares, hence √eps."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Frame of a core C: the weight changes by U C Vᵀ. Columns beyond the rank of the gradient are zero."""

    left: Tensor
    """U, m x k."""
    right: Tensor
    """V, n x k."""
    sigma: Tensor | None = None
    """σ, k numbers, if the frame was just computed from a gradient: Uᵀ G V = diag(σ), G summed over ranks."""


def exact_frame(gradient: Tensor, basis: Tensor, *, rank: int) -> Frame:
    """Return the frame of a dense gradient by a full SVD, which `sketched_frames` approximates (tests, reference).

    Args:
        gradient: G, m x n.
        basis: S, n x s.
        rank: k.
    """
    b = project_out_rows(gradient, basis)
    left, sigma, right_t = torch.linalg.svd(b, full_matrices=False)
    floor = rounding(gradient.norm(), b.norm(), size=max(gradient.shape), dtype=b.dtype, compute_dtype=b.dtype)
    kept = int((sigma[:rank] > floor).sum())
    right = orthonormalize(right_t[:kept].mT, away_from=basis)
    left, right, sigma = (widened(side, rank) for side in (left[:, :kept], right, sigma[:kept]))
    u, v = fixed_signs(left, right)
    return Frame(left=u, right=v, sigma=sigma)


def rounding(whole: Tensor, outside: Tensor, *, size: int, dtype: torch.dtype, compute_dtype: torch.dtype) -> Tensor:
    """Return the singular value of the projected gradient up to which it is rounding.

    Two sources of rounding are added. The products in this file round in `dtype`, relative to the gradient before
    projection (norm `whole`). The model's own arithmetic rounds in `compute_dtype`, relative to the part that was
    projected away, as in `gorp.core.linalg.exceeds_rounding`; C's gradients between two refreshes have that rounding
    too.
    """
    inside = (whole.square() - outside.square()).clamp(min=0).sqrt()  # norm of the part in span(S), by Pythagoras
    eps = torch.finfo(dtype).eps
    return max(eps * size, SQUARED) * whole + rounding_floor(dtype, compute_dtype) * inside


def fixed_signs(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return U and V with the entry of largest magnitude in each column of V positive, and rank 0's on every rank.

    Singular vectors are unique except for the sign of each pair, which depends on the linear algebra library. Anything
    that is stored in the frame's coordinates and outlives the frame (paper mode's S, moments that are kept) depends on
    these signs.
    """
    largest = right.gather(-2, right.abs().argmax(dim=-2, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(right)
    return broadcast_from_owner(left * signs), broadcast_from_owner(right * signs)


def widened(x: Tensor, columns: int) -> Tensor:
    """Return `x` with zero columns appended up to `columns`."""
    return x if x.shape[-1] == columns else pad(x, (0, columns - x.shape[-1]))


def is_due(step: int, *, every: int, offset: int) -> bool:
    """Return whether a layer refreshes its frame at `step`, counted from 1: at 1 + offset, then every `every` steps."""
    return (step - 1) % every == offset % every


def offsets(shapes: Mapping[str, torch.Size], *, every: int) -> dict[str, int]:
    """Return the offset of each layer, 0 to `every` - 1: refreshes are spread over the steps, so that none is slow.

    Layers of the same shape are refreshed in the same step as far as possible, because they share their operations.
    """
    ordered = sorted(shapes, key=lambda name: tuple(shapes[name]))
    return {name: place * every // len(ordered) for place, name in enumerate(ordered)}
