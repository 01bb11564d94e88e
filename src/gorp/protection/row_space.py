"""The directions along which a change of a weight acts, and the principal angles between them and a subspace S.

    ΔW = U Σ Vᵀ        m x n; the first k columns of V span what is called its row space here

The singular values of Vᵀ S are the cosines of the principal angles between the two subspaces: 0 if the change does not
act on S at all, 1 if it acts on a direction that lies in S.

    leak² = ‖ΔW S‖² / ‖ΔW‖² = Σ σᵢ² ‖Sᵀ vᵢ‖² / Σ σᵢ²

so the leak is a mean over all directions, weighted by how strongly the change uses each, and the largest cosine is that
of the worst direction, however little it is used.

Source: Björck and Golub 1973, Mathematics of Computation 27, 579-594.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gorp.weights.delta import WeightDelta


MOST = 64
"""Most directions that are computed."""

REST = 1e-3
"""Share of ‖ΔW‖ below which directions together count as rounding: float32 sums of many steps fill all directions."""

ITERATIONS = 4
"""Subspace iterations for a dense change."""


@dataclass(frozen=True, kw_only=True)
class RowSpace:
    """The leading right singular vectors of a change."""

    directions: Tensor
    """V, n x k, orthonormal columns."""
    sigma: Tensor
    """The k singular values, descending."""
    held: float
    """Share of ‖ΔW‖² that these directions hold, in [0, 1]."""

    def cosines(self, basis: Tensor) -> Tensor:
        """Return the cosines of the principal angles to span(S), descending, min(k, s) numbers in float64.

        Args:
            basis: S, n x s, orthonormal columns.
        """
        between = self.directions.double().mT @ basis.double()  # (k, n) @ (n, s)
        return torch.linalg.svdvals(between).clamp(max=1.0) if between.numel() else between.new_zeros(0)


def row_space(change: WeightDelta) -> RowSpace:
    """Return the fewest leading directions of `change` that leave out at most `REST` of its norm, at most `MOST`.

    Factors need no matrix: with L = Q_l R_l and R = Q_r R_r, R_l R_rᵀ = U Σ Wᵀ gives V = Q_r W, in float64. For a dense
    change, subspace iteration (Z ← qr(ΔWᵀ ΔW Z), then ΔW Z = U Σ Wᵀ and V = Z W) costs 4·m·n·72 flops per iteration,
    where an SVD would cost about m·n². It is exact up to rounding if the rank is at most 72; the same change always
    gives the same result.

    Args:
        change: ΔW, m x n.
    """
    if (factors := change.factors) is not None:
        (_, small_left), (right, small_right) = (torch.linalg.qr(part.double()) for part in factors)
        _, sigma, inner = torch.linalg.svd(small_left @ small_right.mT, full_matrices=False)  # (r, r) @ (r, r)
        vectors = right @ inner.mT  # (n, r) @ (r, r)
    else:
        sigma, vectors = _of_dense(change.dense())
    total = change.norm()
    held = sigma.double().square().cumsum(0)
    rest = (total**2 - held).clamp(min=0).sqrt()  # norm of what is left out if one keeps 1, 2, ... directions
    k = min(int((rest > REST * total).sum()) + 1, MOST, int((sigma > 0).sum()))
    share = held[k - 1].item() / total**2 if k else 0.0
    return RowSpace(directions=vectors[:, :k], sigma=sigma[:k], held=min(share, 1.0))


def _of_dense(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the leading singular values of a matrix, and its right singular vectors as columns."""
    n, width = matrix.shape[1], min(MOST + 8, *matrix.shape)  # 8 extra columns speed up convergence of the others
    z = torch.randn(n, width, generator=torch.Generator().manual_seed(0)).to(matrix)
    for _ in range(ITERATIONS):
        z, _ = torch.linalg.qr(matrix.mT @ (matrix @ z))  # (n, m) @ ((m, n) @ (n, q))
    _, sigma, inner = torch.linalg.svd(matrix @ z, full_matrices=False)
    return sigma, z @ inner.mT
