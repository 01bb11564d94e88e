"""The best factors of a delta at a given rank, and their exact error.

    Δ = U Σ Vᵀ,    Δ_k = U_k Σ_k V_kᵀ,    ‖Δ - Δ_k‖² = Σ_{i>k} σ_i²        (Eckart and Young 1936)

Of a factored delta L Rᵀ this needs only L = Q_l R_l, R = Q_r R_r and the SVD of the small matrix R_l R_rᵀ.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gorp.errors import ConfigError
from gorp.weights.delta import WeightDelta


RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for `max_lora_rank`; an adapter of another rank needs the next one."""

EXACT = 1e-6
"""Relative error up to which a truncation counts as exact: rounding of the float32 delta itself."""

SMALL = 0.01
"""Total relative error below which a rank is chosen if none is exact."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The leading singular vectors of one delta, and all its singular values."""

    u: Tensor  # m x k, float64 of a factored delta, float32 of a dense one; k is at most the largest of `RANKS`
    v: Tensor  # n x k
    sigma: Tensor  # all singular values, decreasing, float64, on the CPU

    def norm(self) -> float:
        """‖Δ‖, Frobenius."""
        return self.sigma.norm().item()

    def lost(self, rank: int) -> float:
        """‖Δ - Δ_k‖ for k = `rank`."""
        return self.sigma[rank:].norm().item()


@torch.no_grad()
def spectrum(delta: WeightDelta, device: torch.device | str = "cpu") -> Spectrum:
    """Return the singular value decomposition of the delta of a matrix, m x n.

    A factored delta of rank r is never formed: two QR of m x r and n x r and an SVD of r x r, in float64. A dense one
    takes the SVD of the matrix in float32.
    """
    most, factors = RANKS[-1], delta.factors
    if factors is not None:
        left, right = (part.to(device, torch.float64) for part in factors)
        q_left, r_left = torch.linalg.qr(left)  # m x r, r x r
        q_right, r_right = torch.linalg.qr(right)  # n x r, r x r
        u, sigma, v_t = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)  # (r, r) @ (r, r)
        u, v = q_left @ u[:, :most], q_right @ v_t[:most].mT
    else:
        u, sigma, v_t = torch.linalg.svd(delta.dense().to(device), full_matrices=False)
        u, v = u[:, :most], v_t[:most].mT
    return Spectrum(u=u.cpu(), v=v.cpu(), sigma=sigma.double().cpu())


def check_rank(rank: int) -> None:
    """Raise ConfigError if `rank` is not one of `RANKS`."""
    if rank not in RANKS:
        close = min(RANKS, key=lambda known: abs(math.log(known / max(rank, 0.5))))
        raise ConfigError(
            f"--rank {rank}: vLLM takes only the ranks {', '.join(map(str, RANKS))}. The nearest is {close}."
        )


def choose_rank(spectra: Mapping[str, Spectrum]) -> tuple[int, str]:
    """Return a rank and the reason for it.

    It is the smallest of `RANKS` at which the truncation of every delta is exact; if there is none, the smallest with a
    total error below `SMALL`; if there is none, the largest.
    """
    for rank in RANKS:
        if all(item.lost(rank) <= EXACT * item.norm() for item in spectra.values()):
            return rank, "the smallest at which nothing is cut off"
    for rank in RANKS:
        if total_error(spectra, rank) < SMALL:
            return rank, f"the smallest at which less than {SMALL:.0%} of the change is cut off"
    return RANKS[-1], f"the largest; it cuts off more than {SMALL:.0%} of the change"


def total_error(spectra: Mapping[str, Spectrum], rank: int) -> float:
    """Return √(Σ ‖Δ - Δ_k‖²) / √(Σ ‖Δ‖²) over all weights."""
    return math.hypot(*(item.lost(rank) for item in spectra.values())) / math.hypot(
        *(item.norm() for item in spectra.values())
    )


def pair(item: Spectrum, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return B (m x `rank`) and A (`rank` x n) with B A = Δ_k; what the delta does not need is zero.

        B = U_k √Σ_k,   A = √Σ_k V_kᵀ

    The root is shared, so that both have entries of similar size in a narrow dtype.
    """
    k = min(rank, item.u.shape[1])
    root = item.sigma[:k].sqrt()
    up, down = torch.zeros(item.u.shape[0], rank, dtype=dtype), torch.zeros(rank, item.v.shape[0], dtype=dtype)
    up[:, :k] = item.u[:, :k].double() * root  # m x k, each column times its root
    down[:k] = (item.v[:, :k].double() * root).mT
    return up, down


@torch.no_grad()
def distance(delta: WeightDelta, up: Tensor, down: Tensor) -> float:
    """Return ‖Δ - B A‖, Frobenius, in float64; of a factored delta without forming it.

    L Rᵀ - B A = [L  -B] [R  Aᵀ]ᵀ,    [L  -B] = Q₁ R₁,   [R  Aᵀ] = Q₂ R₂,    so the norm is that of R₁ R₂ᵀ
    """
    factors = delta.factors
    if factors is None:
        return (delta.dense().double() - up.double() @ down.double()).norm().item()  # (m, k) @ (k, n)
    left, right = (part.double() for part in factors)
    first = torch.linalg.qr(torch.cat([left, -up.double()], dim=1), mode="r").R
    second = torch.linalg.qr(torch.cat([right, down.double().mT], dim=1), mode="r").R
    return (first @ second.mT).norm().item()
