"""Frequent Directions: the row space of a stream of rows, in constant memory."""

import torch
from torch import Tensor

from gorp.core.linalg import eigen


class FrequentDirections:
    """A sketch B (at most 2ℓ x n) of all rows A seen so far, with Bᵀ B close to Aᵀ A.

        when the buffer holds 2ℓ rows:   B = U Σ Vᵀ,   δ = σ²_{ℓ+1},   B ← √max(Σ² - δ, 0) Vᵀ

    For every unit x,  0 <= ‖A x‖² - ‖B x‖² <= ‖A - A_j‖²_F / (ℓ - j)  for each j < ℓ, A_j the best rank-j
    approximation of A.

    Args:
        size: ℓ, rows kept after a shrink. Memory is 2·ℓ·n floats, whatever the number of rows.
        dimension: n.

    References:
        Ghashami, Liberty, Phillips and Woodruff, *Frequent Directions*, arXiv:1501.01711.
    """

    def __init__(self, size: int, dimension: int) -> None:
        if size < 1:
            raise ValueError(f"size is a number of rows, at least 1; got {size}")
        self.size, self.dimension = size, dimension
        self._rows = torch.zeros(0, dimension)

    def insert(self, rows: Tensor) -> None:
        """Feed `rows`, p x n; the sketch is float32, on the device of the rows."""
        for part in rows.detach().float().split(self.size):
            self._rows = torch.cat([self._rows.to(part), part])
            if len(self._rows) >= 2 * self.size:
                self._shrink()

    @property
    def rows(self) -> Tensor:
        """B, at most 2ℓ x n, float32."""
        return self._rows

    def load(self, rows: Tensor) -> None:
        """Go on from saved `rows`."""
        self._rows = rows

    def _shrink(self) -> None:
        # From B Bᵀ = U Σ² Uᵀ, 2ℓ x 2ℓ, in float64: the rows √max(Σ² - δ, 0) Vᵀ are √max(1 - δ/Σ², 0) Uᵀ B.
        wide = self._rows.double()
        squared, vectors = eigen(wide @ wide.mT)
        floor = squared[self.size] if len(squared) > self.size else squared.new_zeros(())
        kept = squared[: self.size]
        factor = torch.where(kept > floor, 1 - floor / kept, 0.0).sqrt()
        self._rows = (factor[:, None] * (vectors[:, : self.size].mT @ wide)).float()
