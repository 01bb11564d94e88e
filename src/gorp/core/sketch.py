"""Frequent Directions: approximate the row space of a stream of rows in constant memory."""

import torch
from torch import Tensor

from gorp.core.linalg import eigen


class FrequentDirections:
    """Sketch B (at most 2ℓ x n) of all rows A inserted so far, with Bᵀ B close to Aᵀ A.

        when the buffer holds 2ℓ rows:   B = U Σ Vᵀ,   δ = σ²_{ℓ+1},   B ← √max(Σ² - δ, 0) Vᵀ

    Error bound, for every unit vector x and each j < ℓ, where A_j is the best rank-j approximation of A:

        0 <= ‖A x‖² - ‖B x‖² <= ‖A - A_j‖²_F / (ℓ - j)

    Args:
        size: ℓ, the number of rows kept after a shrink. Memory is 2·ℓ·n floats, whatever the number of rows inserted.
        dimension: n, the length of a row.

    References:
        Ghashami, Liberty, Phillips and Woodruff, *Frequent Directions*, arXiv:1501.01711.
    """

    def __init__(self, size: int, dimension: int) -> None:
        if size < 1:
            raise ValueError(f"size must be a number of rows of at least 1; got {size}")
        self.size, self.dimension = size, dimension
        self._rows = torch.zeros(0, dimension)

    def insert(self, rows: Tensor) -> None:
        """Add `rows`, p x n, to the sketch, which is float32 and on the device of `rows`."""
        # In parts of ℓ rows, so that the buffer never exceeds 2ℓ rows.
        for part in rows.detach().float().split(self.size):
            self._rows = torch.cat([self._rows.to(part), part])
            if len(self._rows) >= 2 * self.size:
                self._shrink()

    @property
    def rows(self) -> Tensor:
        """B, at most 2ℓ x n, float32."""
        return self._rows

    def load(self, rows: Tensor) -> None:
        """Continue from saved `rows`."""
        self._rows = rows

    def _shrink(self) -> None:
        # V is not computed: with B Bᵀ = U Σ² Uᵀ, √max(Σ² - δ, 0) Vᵀ = √max(1 - δ/Σ², 0) Uᵀ B.
        # In float64, because B Bᵀ squares the singular values and so halves the number of correct digits.
        wide = self._rows.double()
        squared, vectors = eigen(wide @ wide.mT)  # (2ℓ, n) @ (n, 2ℓ)
        delta = squared[self.size] if len(squared) > self.size else squared.new_zeros(())  # δ = σ²_{ℓ+1}
        kept = squared[: self.size]
        factor = torch.where(kept > delta, 1 - delta / kept, 0.0).sqrt()
        self._rows = (factor[:, None] * (vectors[:, : self.size].mT @ wide)).float()  # (ℓ, 2ℓ) @ (2ℓ, n)
