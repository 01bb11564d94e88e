"""Compute frames from layer inputs and output gradients, without forming the gradient, for many layers at once.

X, N x n   inputs of the layer, one row per token        D, N x m   gradients of its outputs
G = Dᵀ X   gradient of the weight, m x n. Forming it would cost 2·N·m·n flops and m·n floats.
L          layers of the same shape that are computed together
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gorp.core.distributed import num_ranks, sum_over_ranks
from gorp.core.frame import Frame, fixed_signs, rounding, widened
from gorp.core.linalg import coarsest, eigen, orthonormalize, project_out, project_out_rows


Pairs = Sequence[tuple[Tensor, Tensor]]
"""(X, D) of each micro-batch of one optimizer step, N x n and N x m."""

STACKED = {"cpu": 2**24, "cuda": 2**30}
"""Most bytes that are copied to compute layers together; a layer that is larger is computed alone. On a GPU nothing but
the largest layers keeps it busy for as long as Python needs to start an operation."""


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

    Layers of the same shape are computed together (`stacks`). The small matrices B Bᵀ of all layers are copied to the
    CPU together; this is the only intended wait for the device.

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
    sketches: list[_Sketch] = []
    for members in stacks([seen.pairs for seen in layers], [seen.basis for seen in layers]):
        seen = [layers[i] for i in members]
        x, d = stacked([layer.pairs for layer in seen], seen[0].basis.dtype)
        q, basis = min(rank + oversampling, d.shape[2], x.shape[2]), _bases(seen)
        rows = torch.stack([layer.rows[:q] for layer in seen]).to(basis)  # R, L x q x n
        q_matrix = _range_of(x, d, rows.mT, basis)  # Q, L x m x q
        for _ in range(power_steps):
            q_matrix = _range_of(x, d, _transposed_times(x, d, q_matrix), basis)
        unprojected = _transposed_times(x, d, q_matrix).mT  # (D Q)ᵀ X, L x q x n
        b = project_out_rows(unprojected, basis).double()  # B = (D Q)ᵀ X (I - S Sᵀ)
        small = torch.cat([(b @ b.mT).flatten(1), unprojected.norm(dim=(1, 2)).double()[:, None]], dim=1)
        sketches.append(_Sketch(members=members, q_matrix=q_matrix, b=b, small=small))
    if not sketches:
        return []
    # One copy to the CPU instead of one per layer.
    on_cpu = torch.cat([sketch.small.flatten() for sketch in sketches]).cpu()
    parts = on_cpu.split([sketch.small.numel() for sketch in sketches])
    frames: list[Frame | None] = [None] * len(layers)
    for sketch, small in zip(sketches, parts, strict=True):
        found = _frames_of(sketch, small.view(sketch.small.shape), [layers[i] for i in sketch.members], rank=rank)
        for index, frame in zip(sketch.members, found, strict=True):
            frames[index] = frame
    return frames


def gradient_rows(layers: Sequence[Pairs], *, count: int, generators: Sequence[torch.Generator]) -> list[Tensor]:
    """Return `count` random combinations R of each gradient's rows with E[Rᵀ R] = Gᵀ G, the input of a row sketch.

    R = Ψᵀ Dᵀ X,   Ψ Gaussian m x count, entries of variance 1 / count        2·N·count·(m + n) flops

    Args:
        layers: (X, D) of each layer on this rank; converted to float32 if narrower. G is the mean over ranks.
        count: Number of rows of R.
        generators: For each layer a CPU generator in the same state on every rank.
    """
    rows: list[Tensor] = [torch.empty(0)] * len(layers)
    wide = [torch.promote_types(pairs[0][0].dtype, torch.float32) for pairs in layers]
    empty = [pairs[0][0].new_zeros(pairs[0][0].shape[1], 0) for pairs in layers]
    for members in stacks(layers, empty):
        x, d = stacked([layers[i] for i in members], wide[members[0]])
        psi = [torch.randn(d.shape[2], count, generator=generators[i], dtype=x.dtype) for i in members]
        psi = (torch.stack(psi) / count**0.5).to(d.device, non_blocking=True)  # L x m x count
        # Rᵀ = Xᵀ (D Ψ), summed over ranks: (n, N) @ ((N, m) @ (m, count))
        for index, found in zip(members, _transposed_times(x, d, psi).mT / num_ranks(), strict=True):
            rows[index] = found
    return rows


@dataclass(frozen=True, kw_only=True)
class _Sketch:
    """The sketched gradients of L layers of the same shape."""

    members: Sequence[int]
    """Indices of the layers."""
    q_matrix: Tensor
    """Q, L x m x q."""
    b: Tensor
    """B, L x q x n, float64."""
    small: Tensor
    """B Bᵀ and ‖(D Q)ᵀ X‖ of each layer, L x (q² + 1), float64."""


def stacks(layers: Sequence[Pairs], bases: Sequence[Tensor]) -> list[list[int]]:
    """Return which layers are computed together: groups of indices of layers of the same shape.

    An operation on small matrices takes less time than Python needs to start it, so one operation on L matrices takes
    little more than one on one matrix. A group has at most `STACKED` bytes, because X, D and S are copied.

    Args:
        layers: (X, D) of each layer.
        bases: S of each layer. Layers with an empty S and those whose S is the whole space have groups of their own.
    """
    if num_ranks() > 1:  # another rank may have other tokens, and all ranks must exchange the same sums
        return [[index] for index in range(len(layers))]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, (pairs, basis) in enumerate(zip(layers, bases, strict=True)):
        (x, d), (n, s) = pairs[0], basis.shape
        kind = "none" if s == 0 else "whole" if s == n else "part"
        key = (sum(len(x) for x, _ in pairs), n, d.shape[1], x.dtype, d.dtype, basis.dtype, x.device, kind)
        groups.setdefault(key, []).append(index)
    result = []
    for (tokens, n, m, *_), members in groups.items():
        largest = 4 * (tokens * (m + n) + max(bases[i].numel() for i in members))
        size = max(1, STACKED.get(bases[members[0]].device.type, STACKED["cpu"]) // largest)
        result += [members[start : start + size] for start in range(0, len(members), size)]
    return result


def stacked(layers: Sequence[Pairs], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return X, L x N x n, and D, L x N x m, of L layers of one group of `stacks`; micro-batches follow each other."""
    sides = [
        [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in map(list, zip(*pairs, strict=True))]
        for pairs in layers
    ]
    x, d = (parts[0][None] if len(parts) == 1 else torch.stack(parts) for parts in zip(*sides, strict=True))
    return x.to(dtype), d.to(dtype)


def _bases(layers: Sequence[FrameInputs]) -> Tensor:
    """Return S of each layer, L x n x s, with zero columns where a layer has fewer than the others."""
    if len(layers) == 1:
        return layers[0].basis[None]
    widest = max(layer.basis.shape[1] for layer in layers)
    return torch.stack([widened(layer.basis, widest) for layer in layers])


def _range_of(x: Tensor, d: Tensor, start: Tensor, basis: Tensor) -> Tensor:
    """Return Q = qr(G Z), L x m x q, where Z = qr((I - S Sᵀ) start), L x n x q. Signs of its columns cancel in U."""
    z = torch.linalg.qr(project_out(project_out(start, basis), basis)).Q  # twice: rounding leaves a part in S
    return torch.linalg.qr(_times(x, d, z)).Q


def _frames_of(sketch: _Sketch, small: Tensor, layers: Sequence[FrameInputs], *, rank: int) -> list[Frame | None]:
    """Return each layer's frame, by the eigenvectors of B Bᵀ.

    Args:
        sketch: The sketched gradients.
        small: `sketch.small` on the CPU.
        layers: The layers.
        rank: k.
    """
    count, m, q = sketch.q_matrix.shape
    n, dtype, device = sketch.b.shape[2], sketch.q_matrix.dtype, sketch.b.device
    finite = small.isfinite().all(dim=1)
    small = torch.where(finite[:, None], small, 0.0)
    squared, vectors = eigen(small[:, :-1].view(count, q, q))  # B Bᵀ = U_b Σ² U_bᵀ
    sigma, vectors = squared.sqrt()[:, :rank], vectors[:, :, :rank]
    floor = rounding(
        small[:, -1],
        squared.sum(dim=1).sqrt(),  # ‖B‖
        size=max(m, n),
        dtype=dtype,
        compute_dtype=coarsest(*(side.dtype for pair in layers[0].pairs for side in pair)),
    )
    kept = sigma > floor[:, None]  # L x k; σ decreases, so the first columns
    packed = torch.cat([torch.where(kept[:, None], vectors, 0.0), torch.where(kept, sigma, 1.0)[:, None]], dim=1)
    packed = torch.cat([packed, kept.to(packed)[:, None]], dim=1).to(device, non_blocking=True)
    vectors, sigma, mask = packed[:, :q], packed[:, q : q + 1], packed[:, q + 1 :].to(dtype)  # L x q x k, L x 1 x k
    left = sketch.q_matrix @ vectors.to(dtype)  # U = Q U_b: (m, q) @ (q, k)
    right = (sketch.b.mT @ (vectors / sigma)).to(dtype)  # V = Bᵀ U_b Σ⁻¹: (n, q) @ (q, k)
    right = orthonormalize(project_out(right, _bases(layers))) * mask  # columns beyond the rank are zero again
    left, right, sigma = (widened(side, rank) for side in (left, right, sigma.to(dtype) * mask))
    return [
        Frame(left=u, right=v, sigma=values[0]) if there else None
        for u, v, values, there in zip(*fixed_signs(left, right), sigma, finite.tolist(), strict=True)
    ]


def _times(x: Tensor, d: Tensor, right: Tensor) -> Tensor:
    """Return G R = Dᵀ (X R), L x m x q, summed over ranks."""
    return sum_over_ranks(d.mT @ (x @ right))  # (m, N) @ ((N, n) @ (n, q)); this order never forms an m x n matrix


def _transposed_times(x: Tensor, d: Tensor, left: Tensor) -> Tensor:
    """Return Gᵀ L = Xᵀ (D L), L x n x q, summed over ranks."""
    return sum_over_ranks(x.mT @ (d @ left))  # (n, N) @ ((N, m) @ (m, q))
