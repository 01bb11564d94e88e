"""Compute the frame U, V of a weight's gradient from layer inputs and output gradients, without forming the gradient.

X, N x n   inputs of the layer, one row per token        D, N x m   gradients of its outputs
G = Dᵀ X   gradient of the weight, m x n. Forming it would cost 2·N·m·n flops and m·n floats.
U, m x k   and   V, n x k   leading singular vectors of G (I - S Sᵀ), so V is orthogonal to the protected basis S
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
"""(X, D) of each micro-batch of one optimizer step, N x n and N x m."""


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


@dataclass(frozen=True, kw_only=True)
class FrameInputs:
    """Inputs from which one layer's frame is computed."""

    pairs: Pairs
    """(X, D) recorded on this rank."""
    basis: Tensor
    """S, n x s. Its dtype is that of the result; X and D are converted to it."""
    rows: Tensor
    """R, random combinations of the gradient's rows from `gradient_rows`: at least q x n, the same on every rank."""


def sketched_frames(
    layers: Sequence[FrameInputs], *, rank: int, oversampling: int, power_steps: int
) -> list[Frame | None]:
    """Return U, V of each layer's projected gradient G (I - S Sᵀ), by a randomized SVD of thin products only.

        R = Ψᵀ G                q x n, Ψ Gaussian, q = k + oversampling; the task's sketch receives the same rows
        Z = qr((I - S Sᵀ) Rᵀ)   n x q
        Y = Dᵀ (X Z)            m x q
        Q = qr(Y)               repeated power_steps times, starting from  Z = qr((I - S Sᵀ) Xᵀ (D Q))
        B = (D Q)ᵀ X (I - S Sᵀ) q x n
        B Bᵀ = U_b Σ² U_bᵀ      q x q, in float64
        U = Q U_b[:, :k]        V = Bᵀ U_b[:, :k] Σ⁻¹, made orthonormal

    The range of Y is that of G (I - S Sᵀ) Gᵀ Ψ: singular values count squared, as after half a power iteration. Without
    the QR of Z, float32 would lose the directions with σ below √eps·σ₁, because of the squares and because rounding
    leaves a part of S in Z. Each product costs 2·N·q·(m + n) flops instead of 2·N·m·n. With several ranks, R, Y, B and
    each Z are sums over all ranks: n·q or m·q numbers each. If q reaches min(m, n), the result is the exact SVD.

    The small matrices B Bᵀ of all layers are copied to the CPU together; this is the only intended wait for the device.
    The last QR is batched over all layers of the same shape.

    Args:
        layers: The inputs for each layer's frame.
        rank: k.
        oversampling: Columns of the sketch beyond k; q = k + oversampling, at most min(m, n).
        power_steps: Number of further refinements of Q; each costs two more products.

    Returns:
        One frame per layer; None where the gradient is not finite.

    References:
        Halko, Martinsson and Tropp, *Finding structure with randomness*, arXiv:0909.4061, algorithms 4.4 and 5.1.
        Wang et al., arXiv:2507.02503 (the frame). To project before taking the frame is our change (docs/equations.md).
    """
    if not layers:
        return []
    ranges, bs, norms = [], [], []
    # One layer at a time: X and D converted to the basis's dtype may be large copies.
    for seen in layers:
        pairs, basis = [(x.to(seen.basis), d.to(seen.basis)) for x, d in seen.pairs], seen.basis
        m, n = pairs[0][1].shape[1], pairs[0][0].shape[1]
        q = min(rank + oversampling, m, n)
        q_matrix = _range_of(pairs, seen.rows[:q].mT.to(basis), basis)  # Q, m x q
        for _ in range(power_steps):
            q_matrix = _range_of(pairs, _transposed_times(pairs, q_matrix), basis)
        unprojected = _transposed_times(pairs, q_matrix).mT  # (D Q)ᵀ X, q x n
        ranges.append(q_matrix)
        bs.append(project_out_rows(unprojected, basis))  # B = (D Q)ᵀ X (I - S Sᵀ)
        norms.append(unprojected.norm())
    bases = [seen.basis for seen in layers]
    compute_dtype = [coarsest(*(x.dtype for pair in seen.pairs for x in pair)) for seen in layers]
    return _frames_from(ranges, bs, norms, bases, compute_dtype, rank=rank)


def exact_frame(gradient: Tensor, basis: Tensor, *, rank: int) -> Frame:
    """Return the frame of a dense gradient by a full SVD, which `sketched_frames` approximates (tests, reference).

    Args:
        gradient: G, m x n.
        basis: S, n x s.
        rank: k.
    """
    b = project_out_rows(gradient, basis)
    left, sigma, right_t = torch.linalg.svd(b, full_matrices=False)
    kept = _numerical_rank(
        sigma[:rank], gradient.norm(), b.norm(), size=max(gradient.shape), dtype=b.dtype, compute_dtype=b.dtype
    )
    right = orthonormalize(right_t[:kept].mT, away_from=basis)
    return _finish(left[:, :kept], sigma[:kept], right, rank=rank)


def _range_of(pairs: Pairs, start: Tensor, basis: Tensor) -> Tensor:
    """Return Q = qr(G Z), m x q, where Z = qr((I - S Sᵀ) start), n x q."""
    return orthonormalize(_times(pairs, orthonormalize(project_out(start, basis), away_from=basis)))


def _frames_from(
    ranges: Sequence[Tensor],
    bs: Sequence[Tensor],
    norms: Sequence[Tensor],
    bases: Sequence[Tensor],
    compute_dtype: Sequence[torch.dtype],
    *,
    rank: int,
) -> list[Frame | None]:
    """Return each layer's frame from Q (`ranges`) and B (`bs`), by the eigenvectors of B Bᵀ."""
    wide = [b.double() for b in bs]
    # B Bᵀ and ‖(D Q)ᵀ X‖ of every layer in one vector: one copy to the CPU instead of one per layer.
    packed = [torch.cat([(b @ b.mT).flatten(), norm.double()[None]]) for b, norm in zip(wide, norms, strict=True)]
    on_cpu = torch.cat(packed).cpu().split([len(part) for part in packed])
    frames: list[Frame | None] = [None] * len(bs)
    factors: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # U, σ and V before the last QR, by layer
    for index, (b, q_matrix, part) in enumerate(zip(bs, ranges, on_cpu, strict=True)):
        if not part.isfinite().all():
            continue
        squared, vectors = eigen(part[:-1].view(len(b), len(b)))  # B Bᵀ = U_b Σ² U_bᵀ, q x q
        sigma, vectors = squared.sqrt()[:rank], vectors[:, :rank]
        projected_norm = squared.sum().sqrt()  # ‖B‖
        size = max(len(q_matrix), b.shape[1])
        kept = _numerical_rank(
            sigma, part[-1], projected_norm, size=size, dtype=b.dtype, compute_dtype=compute_dtype[index]
        )
        vectors, sigma = (x.to(b.device, non_blocking=True) for x in (vectors[:, :kept], sigma[:kept]))
        left = q_matrix @ vectors.to(q_matrix)  # U = Q U_b: (m, q) @ (q, k)
        right = wide[index].mT @ (vectors / sigma)  # V = Bᵀ U_b Σ⁻¹: (n, q) @ (q, k)
        factors[index] = left, sigma.to(left), project_out(right.to(left), bases[index])
    rights = orthonormalize_all([right for _, _, right in factors.values()])
    for (index, (left, sigma, _)), right in zip(factors.items(), rights, strict=True):
        frames[index] = _finish(left, sigma, right, rank=rank)
    return frames


def _numerical_rank(
    sigma: Tensor, whole: Tensor, outside: Tensor, *, size: int, dtype: torch.dtype, compute_dtype: torch.dtype
) -> int:
    """Return how many singular values of the projected gradient are above rounding.

    Two sources of rounding are added. The products in this file round in `dtype`, relative to the gradient before
    projection (norm `whole`). The model's own arithmetic rounds in `compute_dtype`, relative to the part that was
    projected away, as in `gorp.core.linalg.exceeds_rounding`; C's gradients between two refreshes have that rounding
    too.
    """
    eps = torch.finfo(dtype).eps
    inside = (whole.square() - outside.square()).clamp(min=0).sqrt()  # norm of the part in span(S), by Pythagoras
    return int((sigma > max(eps * size, SQUARED) * whole + rounding_floor(dtype, compute_dtype) * inside).sum())


def _finish(left: Tensor, sigma: Tensor, right: Tensor, *, rank: int) -> Frame:
    """Return the frame of U, σ, V: fix the signs, pad with zeros to k columns, and use rank 0's result on every rank.

    Singular vectors are unique except for the sign of each pair, which depends on the linear algebra library. Anything
    that is stored in the frame's coordinates and outlives the frame (paper mode's S, moments that are kept) depends on
    these signs. So they are fixed: the entry of largest magnitude in each column of V is positive.
    """
    kept = len(sigma)
    largest = right.gather(0, right.abs().argmax(dim=0, keepdim=True)) if kept else right[:1]
    signs = torch.where(largest < 0, -1.0, 1.0).to(right)
    padded = [torch.nn.functional.pad(x * signs, (0, rank - kept)) for x in (left, right)]
    u, v = (broadcast_from_owner(x) for x in padded)
    return Frame(left=u.contiguous(), right=v.contiguous(), sigma=torch.nn.functional.pad(sigma, (0, rank - kept)))


def gradient_rows(pairs: Pairs, *, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` random combinations R of the gradient's rows with E[Rᵀ R] = Gᵀ G, the input of a row sketch.

    R = Ψᵀ Dᵀ X,   Ψ Gaussian m x count, entries of variance 1 / count        2·N·count·(m + n) flops

    Args:
        pairs: (X, D) of this rank; converted to float32 if narrower. G is the mean over ranks.
        count: Number of rows of R.
        generator: A CPU generator in the same state on every rank.
    """
    dtype = torch.promote_types(pairs[0][0].dtype, torch.float32)
    pairs = [(x.to(dtype), d.to(dtype)) for x, d in pairs]
    m = pairs[0][1].shape[1]
    psi = torch.randn(m, count, generator=generator, dtype=dtype) / count**0.5
    # Rᵀ = Xᵀ (D Ψ), summed over ranks: (n, N) @ ((N, m) @ (m, count))
    return _transposed_times(pairs, psi.to(pairs[0][1].device, non_blocking=True)).mT / num_ranks()


def is_due(step: int, *, every: int, offset: int) -> bool:
    """Return whether a layer refreshes its frame at `step`, counted from 1: at 1 + offset, then every `every` steps.

    Different offsets for different layers spread the refreshes over the steps, so that no single step is slow.
    """
    return (step - 1) % every == offset % every


def _times(pairs: Pairs, right: Tensor) -> Tensor:
    """Return G R = Σ Dᵀ (X R), m x q, summed over micro-batches and ranks."""
    # (m, N) @ ((N, n) @ (n, q)); this order never forms an m x n matrix
    return sum_over_ranks(torch.as_tensor(sum(d.mT @ (x @ right) for x, d in pairs)))


def _transposed_times(pairs: Pairs, left: Tensor) -> Tensor:
    """Return Gᵀ L = Σ Xᵀ (D L), n x q, summed over micro-batches and ranks."""
    # (n, N) @ ((N, m) @ (m, q))
    return sum_over_ranks(torch.as_tensor(sum(x.mT @ (d @ left) for x, d in pairs)))
