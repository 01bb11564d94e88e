"""The gradient's frame U, V from layer inputs and output gradients; the gradient itself is never formed.

X, N x n   inputs of the layer, one row a token          D, N x m   gradients of its outputs
G = Dᵀ X   gradient of the weight, m x n: 2·N·m·n flops and m·n floats, which is what is avoided here
U, m x k   and   V, n x k   its leading singular vectors, V orthogonal to the protected directions S
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gorp.distributed import broadcast_from_owner, num_ranks, sum_over_ranks
from gorp.linalg import orthonormalize, project_out, project_out_rows


Pairs = Sequence[tuple[Tensor, Tensor]]
"""(X, D) of each micro-batch of one optimizer step: N x n and N x m."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where the core C lives: the weight changes by U C Vᵀ. Columns beyond the gradient's rank are zero."""

    left: Tensor
    """U, m x k."""
    right: Tensor
    """V, n x k."""


def sketched_frame(
    pairs: Pairs, basis: Tensor, *, rank: int, oversampling: int, power_steps: int, generator: torch.Generator
) -> Frame | None:
    """U, V of the projected gradient G (I - S Sᵀ), by a randomized SVD that only ever multiplies thin matrices.

        Y = Dᵀ (X Ω)            Ω = (I - S Sᵀ) Gaussian, n x q, q = k + oversampling
        Q = qr(Y)               repeated after  Z = (I - S Sᵀ) Xᵀ (D Q),  Y = Dᵀ (X Z)   power_steps times
        B = (D Q)ᵀ X (I - S Sᵀ) q x n
        B = U_b Σ Vᵀ            U = Q U_b[:, :k],  V = V[:, :k]

    Each product costs 2·N·q·(m + n) flops instead of 2·N·m·n. With several ranks the sums Y, Z and B run over all
    of them: (m + n)·q numbers a product. When q reaches min(m, n) the frame is that of the exact SVD.

    Args:
        pairs: This rank's (X, D).
        basis: S, n x s. The dtype of the result; X and D are converted to it.
        rank: k.
        oversampling: Columns of the sketch beyond k; q = k + oversampling, at most min(m, n).
        power_steps: How often Q is refined; each costs two more products.
        generator: A CPU generator, the same on every rank.

    Returns:
        The frame; None where the gradient is not finite.

    References:
        Halko, Martinsson and Tropp, *Finding structure with randomness*, arXiv:0909.4061, algorithms 4.4 and 5.1.
        Wang et al., arXiv:2507.02503 (the frame); the order "project, then take the frame" is ours (docs/equations.md).
    """
    pairs = [(x.to(basis), d.to(basis)) for x, d in pairs]
    m, n = pairs[0][1].shape[1], pairs[0][0].shape[1]
    q = min(rank + oversampling, m, n)
    omega = torch.randn(n, q, generator=generator, dtype=basis.dtype).to(basis.device)
    omega = project_out(omega, basis)
    y = _times(pairs, omega)
    if not torch.isfinite(y).all():
        return None
    left = _range(y)
    for _ in range(power_steps):
        z = project_out(_transposed_times(pairs, left), basis)
        left = _range(_times(pairs, z))
    whole = _transposed_times(pairs, left).mT  # (D Q)ᵀ X, q x n
    b = project_out_rows(whole, basis)  # (D Q)ᵀ X (I - S Sᵀ)
    small_left, sigma, right_t = torch.linalg.svd(b, full_matrices=False)
    left, right = left @ small_left[:, :rank], right_t[:rank].mT
    return _finish(left, sigma[:rank], right, basis, rank=rank, size=whole.norm(), outside=b.norm())


def exact_frame(gradient: Tensor, basis: Tensor, *, rank: int) -> Frame:
    """The same from a dense gradient by a full SVD: what `sketched_frame` approximates. For tests and the reference.

    Args:
        gradient: G, m x n.
        basis: S, n x s.
        rank: k.
    """
    b = project_out_rows(gradient, basis)
    left, sigma, right_t = torch.linalg.svd(b, full_matrices=False)
    left, right = left[:, :rank], right_t[:rank].mT
    return _finish(left, sigma[:rank], right, basis, rank=rank, size=gradient.norm(), outside=b.norm())


def _finish(
    left: Tensor, sigma: Tensor, right: Tensor, basis: Tensor, *, rank: int, size: Tensor, outside: Tensor
) -> Frame:
    """Drop directions without signal, make V exactly orthogonal to S, pad to k columns, agree among ranks.

    Singular vectors are unique but for the sign of each pair, which libraries choose as they like. Whatever lives in
    the frame's coordinates and outlives it (paper mode's S, moments that are kept) depends on it, so it is fixed: the
    largest entry of each column of V is positive.
    """
    # Rounding is measured against the gradient before projection: what is left of one that lies in S is noise, and
    # as in `gorp.linalg.stands_out` a direction must stand out from what was projected away.
    eps, inside = torch.finfo(sigma.dtype).eps, (size.square() - outside.square()).clamp(min=0).sqrt()
    floor = eps * max(*left.shape, *right.shape) * size + eps**0.5 * inside
    alive = int((sigma > floor).sum())
    right = orthonormalize(right[:, :alive], away_from=basis)
    largest = right.gather(0, right.abs().argmax(dim=0, keepdim=True)) if alive else right[:1]
    signs = torch.where(largest < 0, -1.0, 1.0).to(right)
    padded = [torch.nn.functional.pad(x * signs, (0, rank - alive)) for x in (left[:, :alive], right)]
    u, v = (broadcast_from_owner(x) for x in padded)
    return Frame(left=u.contiguous(), right=v.contiguous())


def reduced_gradient(pairs: Pairs, frame: Frame) -> Tensor:
    """dL/dC = Uᵀ G V = (D U)ᵀ (X V), k x k, averaged over ranks as data-parallel gradients are."""
    total = sum((d.to(frame.left) @ frame.left).mT @ (x.to(frame.right) @ frame.right) for x, d in pairs)
    return sum_over_ranks(torch.as_tensor(total)) / num_ranks()


def gradient_rows(pairs: Pairs, *, count: int, generator: torch.Generator) -> Tensor:
    """`count` random combinations R of the gradient's rows, with E[Rᵀ R] = Gᵀ G: what a row sketch is fed.

    R = Ψᵀ Dᵀ X,   Ψ Gaussian m x count, entries of variance 1 / count        4·N·count·(m + n) flops
    """
    pairs = [(x.float(), d.float()) for x, d in pairs]
    m = pairs[0][1].shape[1]
    psi = torch.randn(m, count, generator=generator).to(pairs[0][1].device) / count**0.5
    return _transposed_times(pairs, psi).mT / num_ranks()


def rotate_moments(state: dict[str, Tensor], old: Frame, new: Frame) -> None:
    """Carry an optimizer's k x k moments from the old frame into the new one, in place.

        L = U_newᵀ U,  R = Vᵀ V_new
        exp_avg    ← L m R                        a gradient rotates with its frame
        exp_avg_sq ← (L∘L) v (R∘R)                a variance does so where entries are independent

    What the new frame does not span is forgotten. Tensors of another name or shape are left alone.
    """
    rotation_left, rotation_right = new.left.mT @ old.left, old.right.mT @ new.right
    for key, moment in state.items():
        if not torch.is_tensor(moment) or moment.shape != (rotation_left.shape[0], rotation_right.shape[0]):
            continue
        if key in ("exp_avg", "momentum_buffer"):
            moment.copy_(rotation_left.to(moment) @ moment @ rotation_right.to(moment))
        elif key in ("exp_avg_sq", "max_exp_avg_sq"):
            moment.copy_(rotation_left.square().to(moment) @ moment @ rotation_right.square().to(moment))


def is_due(step: int, *, every: int, offset: int) -> bool:
    """Whether a layer refreshes its frame at `step`, counted from 1: at 1 + offset, then each `every` steps.

    Layers with different offsets spread their refreshes, so that no step is slow.
    """
    return (step - 1) % every == offset % every


def _range(y: Tensor) -> Tensor:
    return torch.linalg.qr(y).Q


def _times(pairs: Pairs, right: Tensor) -> Tensor:
    """G R = Σ Dᵀ (X R), m x q."""
    return sum_over_ranks(torch.as_tensor(sum(d.mT @ (x @ right) for x, d in pairs)))


def _transposed_times(pairs: Pairs, left: Tensor) -> Tensor:
    """Gᵀ L = Σ Xᵀ (D L), n x q."""
    return sum_over_ranks(torch.as_tensor(sum(x.mT @ (d @ left) for x, d in pairs)))
