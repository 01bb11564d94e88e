"""The gradient's frame U, V from layer inputs and output gradients; the gradient itself is never formed.

X, N x n   inputs of the layer, one row a token          D, N x m   gradients of its outputs
G = Dᵀ X   gradient of the weight, m x n: 2·N·m·n flops and m·n floats, which is what is avoided here
U, m x k   and   V, n x k   its leading singular vectors, V orthogonal to the protected directions S
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gorp.core.distributed import broadcast_from_owner, num_ranks, sum_over_ranks
from gorp.core.linalg import (
    coarsest,
    eigen,
    orthonormalize,
    orthonormalize_all,
    project_out,
    project_out_rows,
    rounding_floor,
)


Pairs = Sequence[tuple[Tensor, Tensor]]
"""(X, D) of each micro-batch of one optimizer step: N x n and N x m."""


SQUARED = 4 * torch.finfo(torch.float64).eps ** 0.5
"""Relative size under which the eigenvalues of B Bᵀ, which are squares, say nothing in float64."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where the core C lives: the weight changes by U C Vᵀ. Columns beyond the gradient's rank are zero."""

    left: Tensor
    """U, m x k."""
    right: Tensor
    """V, n x k."""
    sigma: Tensor | None = None
    """Of a frame just taken from a gradient: Uᵀ G V = diag(σ), k numbers, summed over ranks."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one layer's frame is taken from."""

    pairs: Pairs
    """This rank's (X, D)."""
    basis: Tensor
    """S, n x s. The dtype of the result; X and D are converted to it."""
    rows: Tensor
    """R, random combinations of the gradient's rows, from `gradient_rows`; at least q x n, the same on every rank."""


def sketched_frames(layers: Sequence[Seen], *, rank: int, oversampling: int, power_steps: int) -> list[Frame | None]:
    """U, V of each layer's projected gradient G (I - S Sᵀ), by a randomized SVD that only multiplies thin matrices.

        R = Ψᵀ G                q x n, Ψ Gaussian, q = k + oversampling: the rows that the task's sketch is fed as well
        Z = qr((I - S Sᵀ) Rᵀ)   n x q
        Y = Dᵀ (X Z)            m x q
        Q = qr(Y)               repeated from  Z = qr((I - S Sᵀ) Xᵀ (D Q))  on, power_steps times
        B = (D Q)ᵀ X (I - S Sᵀ) q x n
        B Bᵀ = U_b Σ² U_bᵀ      q x q, in float64
        U = Q U_b[:, :k]        V = Bᵀ U_b[:, :k] Σ⁻¹, made orthonormal

    The range of Y is that of G (I - S Sᵀ) Gᵀ Ψ: singular values count squared, as after half a power iteration. Without
    the QR of Z, float32 would lose the directions below √eps·σ₁ to the squares, and to what is left in Z of S.
    Each product costs 2·N·q·(m + n) flops instead of 2·N·m·n. With several ranks R, Y, B and each Z are sums over all
    of them: n·q or m·q numbers. When q reaches min(m, n) the frame is that of the exact SVD.

    The small matrices B Bᵀ of all layers go to the CPU in one piece, which is the only time that a device is waited for
    on purpose; the last QR runs over all layers of one shape together.

    Args:
        layers: What is seen of each.
        rank: k.
        oversampling: Columns of the sketch beyond k; q = k + oversampling, at most min(m, n).
        power_steps: How often Q is refined further; each costs two more products.

    Returns:
        The frames; None where the gradient is not finite.

    References:
        Halko, Martinsson and Tropp, *Finding structure with randomness*, arXiv:0909.4061, algorithms 4.4 and 5.1.
        Wang et al., arXiv:2507.02503 (the frame); the order "project, then take the frame" is ours (docs/equations.md).
    """
    if not layers:
        return []
    lefts, bs, sizes = [], [], []
    for seen in layers:  # one after another: X and D in the basis's dtype may be copies, and large
        pairs, basis = [(x.to(seen.basis), d.to(seen.basis)) for x, d in seen.pairs], seen.basis
        m, n = pairs[0][1].shape[1], pairs[0][0].shape[1]
        q = min(rank + oversampling, m, n)
        left = _range_of(pairs, seen.rows[:q].mT.to(basis), basis)
        for _ in range(power_steps):
            left = _range_of(pairs, _transposed_times(pairs, left), basis)
        whole = _transposed_times(pairs, left).mT  # (D Q)ᵀ X, q x n
        lefts.append(left)
        bs.append(project_out_rows(whole, basis))  # (D Q)ᵀ X (I - S Sᵀ)
        sizes.append(whole.norm())
    bases = [seen.basis for seen in layers]
    made_in = [coarsest(*(x.dtype for pair in seen.pairs for x in pair)) for seen in layers]
    return _from_rows(lefts, bs, sizes, bases, made_in, rank=rank)


def exact_frame(gradient: Tensor, basis: Tensor, *, rank: int) -> Frame:
    """The same from a dense gradient by a full SVD: what `sketched_frames` approximates. For tests and the reference.

    Args:
        gradient: G, m x n.
        basis: S, n x s.
        rank: k.
    """
    b = project_out_rows(gradient, basis)
    left, sigma, right_t = torch.linalg.svd(b, full_matrices=False)
    alive = _alive(sigma[:rank], gradient.norm(), b.norm(), size=max(gradient.shape), dtype=b.dtype, made_in=b.dtype)
    right = orthonormalize(right_t[:alive].mT, away_from=basis)
    return _finish(left[:, :alive], sigma[:alive], right, rank=rank)


def _range_of(pairs: Pairs, start: Tensor, basis: Tensor) -> Tensor:
    """Q = qr(G Z), m x q, of Z = qr((I - S Sᵀ) start)."""
    return orthonormalize(_times(pairs, orthonormalize(project_out(start, basis), away_from=basis)))


def _from_rows(
    lefts: Sequence[Tensor],
    bs: Sequence[Tensor],
    sizes: Sequence[Tensor],
    bases: Sequence[Tensor],
    made_in: Sequence[torch.dtype],
    *,
    rank: int,
) -> list[Frame | None]:
    """The frames from Q and B of each layer, by the eigenvectors of B Bᵀ."""
    wide = [b.double() for b in bs]
    told = [torch.cat([(b @ b.mT).flatten(), size.double()[None]]) for b, size in zip(wide, sizes, strict=True)]
    host = torch.cat(told).cpu().split([len(part) for part in told])
    frames: list[Frame | None] = [None] * len(bs)
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for index, (b, left, part) in enumerate(zip(bs, lefts, host, strict=True)):
        if not part.isfinite().all():
            continue
        squared, vectors = eigen(part[:-1].view(len(b), len(b)))
        sigma, vectors = squared.sqrt()[:rank], vectors[:, :rank]
        outside = squared.sum().sqrt()
        size = max(len(left), b.shape[1])
        alive = _alive(sigma, part[-1], outside, size=size, dtype=b.dtype, made_in=made_in[index])
        turn, sigma = (x.to(b.device, non_blocking=True) for x in (vectors[:, :alive], sigma[:alive]))
        right = wide[index].mT @ (turn / sigma)  # Bᵀ U_b Σ⁻¹
        found[index] = left @ turn.to(left), sigma.to(left), project_out(right.to(left), bases[index])
    rights = orthonormalize_all([right for _, _, right in found.values()])
    for (index, (left, sigma, _)), right in zip(found.items(), rights, strict=True):
        frames[index] = _finish(left, sigma, right, rank=rank)
    return frames


def _alive(
    sigma: Tensor, whole: Tensor, outside: Tensor, *, size: int, dtype: torch.dtype, made_in: torch.dtype
) -> int:
    """How many directions have signal.

    Rounding of the products here, in `dtype`, is measured against the gradient before projection. And as in
    `gorp.core.linalg.stands_out` a direction must stand out from what was projected away, by the rounding of the
    model's own arithmetic, `made_in`: C's gradients between two refreshes have it.
    """
    eps = torch.finfo(dtype).eps
    inside = (whole.square() - outside.square()).clamp(min=0).sqrt()
    return int((sigma > max(eps * size, SQUARED) * whole + rounding_floor(dtype, made_in) * inside).sum())


def _finish(left: Tensor, sigma: Tensor, right: Tensor, *, rank: int) -> Frame:
    """Fix the signs, pad to k columns, agree among ranks.

    Singular vectors are unique but for the sign of each pair, which libraries choose as they like. Whatever lives in
    the frame's coordinates and outlives it (paper mode's S, moments that are kept) depends on it, so it is fixed: the
    largest entry of each column of V is positive.
    """
    alive = len(sigma)
    largest = right.gather(0, right.abs().argmax(dim=0, keepdim=True)) if alive else right[:1]
    signs = torch.where(largest < 0, -1.0, 1.0).to(right)
    padded = [torch.nn.functional.pad(x * signs, (0, rank - alive)) for x in (left, right)]
    u, v = (broadcast_from_owner(x) for x in padded)
    return Frame(left=u.contiguous(), right=v.contiguous(), sigma=torch.nn.functional.pad(sigma, (0, rank - alive)))


def gradient_rows(pairs: Pairs, *, count: int, generator: torch.Generator) -> Tensor:
    """`count` random combinations R of the gradient's rows, with E[Rᵀ R] = Gᵀ G: what a row sketch is fed.

    R = Ψᵀ Dᵀ X,   Ψ Gaussian m x count, entries of variance 1 / count        2·N·count·(m + n) flops

    Args:
        pairs: This rank's (X, D), computed in float32 or wider; G is the mean over ranks.
        count: Rows of R.
        generator: A CPU generator, the same on every rank.
    """
    dtype = torch.promote_types(pairs[0][0].dtype, torch.float32)
    pairs = [(x.to(dtype), d.to(dtype)) for x, d in pairs]
    m = pairs[0][1].shape[1]
    psi = torch.randn(m, count, generator=generator, dtype=dtype) / count**0.5
    return _transposed_times(pairs, psi.to(pairs[0][1].device, non_blocking=True)).mT / num_ranks()


def is_due(step: int, *, every: int, offset: int) -> bool:
    """Whether a layer refreshes its frame at `step`, counted from 1: at 1 + offset, then each `every` steps.

    Layers with different offsets spread their refreshes, so that no step is slow.
    """
    return (step - 1) % every == offset % every


def _times(pairs: Pairs, right: Tensor) -> Tensor:
    """G R = Σ Dᵀ (X R), m x q."""
    return sum_over_ranks(torch.as_tensor(sum(d.mT @ (x @ right) for x, d in pairs)))


def _transposed_times(pairs: Pairs, left: Tensor) -> Tensor:
    """Gᵀ L = Σ Xᵀ (D L), n x q."""
    return sum_over_ranks(torch.as_tensor(sum(x.mT @ (d @ left) for x, d in pairs)))
