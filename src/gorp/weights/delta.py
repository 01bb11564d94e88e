"""Deltas: the change that training added to a weight, stored separately from it in float32."""

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightDelta:
    """W - W₀ of one parameter, stored as factors L Rᵀ while they are smaller than the matrix, and dense otherwise.

    Base weights are never modified in place: a bfloat16 weight of 0.02 would lose an update of 1e-6 completely. Folds
    are appended to the delta exactly, and the working weight is round(W₀ + delta). The delta of the current task is on
    the device of the weight; deltas of finished tasks are in main memory.

    Args:
        shape: Shape of the parameter. Only the delta of a matrix can be factored.
    """

    def __init__(self, shape: torch.Size) -> None:
        self.shape = torch.Size(shape)
        self._dense: Tensor | None = None
        self._left: Tensor | None = None
        self._right: Tensor | None = None

    @classmethod
    def of(cls, dense: Tensor) -> "WeightDelta":
        """Return a dense delta with the values of `dense`, converted to float32 if narrower."""
        delta = cls(dense.shape)
        delta._dense = _wide(dense)
        return delta

    @classmethod
    def of_factors(cls, left: Tensor, right: Tensor) -> "WeightDelta":
        """Return the delta `left` `right`ᵀ, m x r and n x r, without computing the product while it is larger."""
        delta = cls(torch.Size([len(left), len(right)]))
        delta.append(left, right)
        return delta

    @classmethod
    def without_data(cls, shape: torch.Size, rank: int | None = None) -> "WeightDelta":
        """A delta on the meta device: factored, of `rank` columns; dense if None or if the factors are no smaller."""
        if rank is None:
            return cls.of(torch.empty(shape, device="meta"))
        left, right = (torch.empty(side, rank, device="meta") for side in shape)
        return cls.of_factors(left, right)

    @property
    def rank(self) -> int:
        """Number of columns of the factors; 0 for an empty delta, min(m, n) for a dense one."""
        if self._dense is not None:
            return min(self.shape)
        return 0 if self._left is None else self._left.shape[1]

    @property
    def is_dense(self) -> bool:
        """Whether the delta is stored as a dense matrix."""
        return self._dense is not None

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """L and R of L Rᵀ, m x r and n x r; None if the delta is dense or empty."""
        return None if self._left is None or self._right is None else (self._left, self._right)

    def append(self, left: Tensor, right: Tensor) -> None:
        """Add `left` `right`ᵀ, m x r and n x r, exactly; convert to dense once the factors are as large as that."""
        left, right = _wide(left), _wide(right)
        if self._dense is not None:
            self._dense = torch.addmm(self._dense, left.to(self._dense), right.to(self._dense).mT)
            return
        if self._left is not None and self._right is not None:
            left = torch.cat([self._left, left.to(self._left)], dim=1)
            right = torch.cat([self._right, right.to(self._right)], dim=1)
        self._left, self._right = left.contiguous(), right.contiguous()
        m, n = self.shape
        if self._left.shape[1] * (m + n) >= m * n:  # the factors need r·(m + n) numbers, the matrix m·n
            self._dense, self._left, self._right = self._left @ self._right.mT, None, None  # (m, r) @ (r, n)

    def add(self, other: "WeightDelta") -> None:
        """Add another delta of the same parameter."""
        if other._left is not None and other._right is not None:
            self.append(other._left, other._right)
        elif other._dense is not None:
            self._dense, self._left, self._right = self.dense() + other._dense, None, None

    def since(self, earlier: "WeightDelta") -> "WeightDelta":
        """Return what was added since `earlier`, a former state of this delta: appended columns or the difference."""
        if self._left is not None and self._right is not None and not earlier.is_dense:
            added = WeightDelta(self.shape)
            if earlier._left is None or earlier._right is None:
                added._left, added._right = self._left, self._right
                return added
            r, left, right = earlier.rank, earlier._left.to(self._left), earlier._right.to(self._right)
            # Recompression rewrites all columns; only if the first r are unchanged are the others what was appended.
            if torch.equal(self._left[:, :r], left) and torch.equal(self._right[:, :r], right):
                added._left, added._right = self._left[:, r:], self._right[:, r:]
                return added
        return WeightDelta.of(self.dense() - earlier.dense().to(self.dense()))

    def minus(self, other: "WeightDelta") -> "WeightDelta":
        """Return the difference of two deltas of one parameter, for example of versions on two branches.

        Columns that both begin with, as two branches do, are left out; the rest of two factored deltas stays factored,
        as [L, -L'] [R, R']ᵀ, while that is smaller. Otherwise one matrix is made.
        """
        found = WeightDelta(self.shape)
        if not self.is_dense and not other.is_dense:
            left, right = self._columns()
            its_left, its_right = (part.to(left) for part in other._columns())
            r = min(left.shape[1], its_left.shape[1])
            same = (left[:, :r] == its_left[:, :r]).all(dim=0) & (right[:, :r] == its_right[:, :r]).all(dim=0)
            r = int(same.cumprod(dim=0).sum())
            found.append(
                torch.cat([left[:, r:], -its_left[:, r:]], dim=1), torch.cat([right[:, r:], its_right[:, r:]], dim=1)
            )
        elif self.is_dense and other.is_dense:
            found._dense = self.dense() - other.dense().to(self.dense())
        elif self.is_dense:
            left, right = (part.to(self.dense()) for part in other._columns())
            found._dense = torch.addmm(self.dense(), left, right.mT, alpha=-1)  # (m, r) @ (r, n)
        else:
            left, right = self._columns()
            found._dense = torch.addmm(other.dense().to(left), left, right.mT, beta=-1)
        return found

    def _columns(self) -> tuple[Tensor, Tensor]:
        """Return the factors of a delta that is not dense; m x 0 and n x 0 if it is empty."""
        return self.factors or (torch.zeros(self.shape[0], 0), torch.zeros(self.shape[1], 0))

    def recompress(self, tolerance: float) -> float:
        """Shorten the factors by QR and a small SVD; return the relative error of the delta, at most `tolerance`.

            L = Q_l R_l,  R = Q_r R_r,  R_l R_rᵀ = U Σ Vᵀ,  L Rᵀ = (Q_l U Σ) (Q_r V)ᵀ

        The smallest singular values are dropped as long as their joint norm is at most `tolerance` · ‖L Rᵀ‖. The new
        rows of Rᵀ are linear combinations of the old ones, so a delta that is orthogonal to S stays orthogonal to S.
        """
        if self._left is None or self._right is None:
            return 0.0
        q_left, r_left = torch.linalg.qr(self._left)  # m x r, r x r
        q_right, r_right = torch.linalg.qr(self._right)  # n x r, r x r
        u, sigma, v_t = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)  # (r, r) @ (r, r)
        # tail[i]: norm of the dropped part if i values are kept. On the CPU: CUDA has no deterministic cumsum.
        tail = sigma.cpu().square().flip(0).cumsum(0).flip(0).sqrt()
        total = tail[0].clone() if len(tail) else torch.zeros(())
        keep = max(1, int((tail > tolerance * total).sum()))
        self._left = (q_left @ (u * sigma)[:, :keep]).contiguous()
        self._right = (q_right @ v_t.mT[:, :keep]).contiguous()
        return (tail[keep] / total).item() if keep < len(tail) and total > 0 else 0.0

    def dense(self) -> Tensor:
        """Return the delta as a dense matrix, float32 (float64 in a float64 model)."""
        if self._dense is not None:
            return self._dense
        if self._left is None or self._right is None:
            return torch.zeros(self.shape)
        return self._left @ self._right.mT

    def add_to(self, total: Tensor, rows: slice) -> None:
        """Add rows `rows` of the delta to `total` in place, in the dtype and on the device of `total`."""
        if self._dense is not None:
            total += self._dense[rows].to(total, non_blocking=True)
        elif self._left is not None and self._right is not None and self._left.shape[1]:
            total.addmm_(self._left[rows].to(total), self._right.to(total).mT)  # (rows, r) @ (r, n)

    def to(self, device: torch.device | str) -> "WeightDelta":
        """Return the delta on `device`; tensors that are already there are shared, not copied."""
        moved = WeightDelta(self.shape)
        moved._dense, moved._left, moved._right = (
            None if x is None else x.to(device) for x in (self._dense, self._left, self._right)
        )
        return moved

    def factors_to(self, device: torch.device) -> "WeightDelta":
        """Return the delta with its factors on `device`; a dense delta stays where it is."""
        if self._left is None or self._right is None:
            return self
        return WeightDelta.of_factors(*(x.to(device, non_blocking=True) for x in (self._left, self._right)))

    def pinned(self) -> "WeightDelta":
        """Return the delta with its factors in pinned memory, from which a copy to a GPU does not wait for it."""
        if self._left is None or self._right is None:
            return self  # dense: as large as the matrix, so no second copy is made
        return WeightDelta.of_factors(self._left.pin_memory(), self._right.pin_memory())

    def times(self, x: Tensor) -> Tensor:
        """Return delta @ `x`, m x p, without forming the delta; x is n x p."""
        if self._left is not None and self._right is not None:
            return self._left @ (self._right.mT @ x.to(self._right))  # (m, r) @ ((r, n) @ (n, p))
        return self.dense() @ x.to(self.dense())

    def norm(self) -> float:
        """Return the Frobenius norm; of factors by ‖L Rᵀ‖² = tr((LᵀL)(RᵀR)) in float64, without forming the delta."""
        if self._left is not None and self._right is not None:
            left, right = self._left.double(), self._right.double()
            return ((left.mT @ left) * (right.mT @ right)).sum().clamp(min=0).sqrt().item()  # r x r, entry by entry
        return 0.0 if self._dense is None else self._dense.norm().item()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors for a file: `<name>` if dense, `<name>::left` and `<name>::right` if factored."""
        if self._dense is not None:
            return {name: self._dense}
        if self._left is not None and self._right is not None:
            return {f"{name}::left": self._left, f"{name}::right": self._right}
        if len(self.shape) != 2:
            return {name: self.dense()}
        # An empty delta is stored as factors without columns. As a dense zero it would round later additions
        # differently from the delta in memory, and a resumed run would not be bit-identical.
        return {f"{name}::left": torch.zeros(self.shape[0], 0), f"{name}::right": torch.zeros(self.shape[1], 0)}


def leak(change: WeightDelta, basis: Tensor) -> float:
    """Return the share of a weight's change that acts on protected inputs: ‖ΔW S‖ / ‖ΔW‖, Frobenius, in [0, 1].

    Args:
        change: ΔW, m x n.
        basis: S, n x s.
    """
    size = change.norm()
    return change.times(basis).norm().item() / size if size > 0 else 0.0


def _wide(x: Tensor) -> Tensor:
    """Convert to float32 if narrower. Float64 stays, so that the delta of a float64 model is as exact as the model."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def pack_deltas(deltas: Mapping[str, WeightDelta]) -> dict[str, Tensor]:
    """Return the tensors of `delta.safetensors`: one dense matrix or two factors per weight, float32."""
    return {key: tensor.float() for name, delta in deltas.items() for key, tensor in delta.tensors(name).items()}


def unpack_deltas(tensors: Mapping[str, Tensor]) -> dict[str, WeightDelta]:
    """Return the deltas that `pack_deltas` packed."""
    deltas: dict[str, WeightDelta] = {}
    for key, tensor in tensors.items():
        if key.endswith("::left"):
            name = key.removesuffix("::left")
            right = tensors[f"{name}::right"]
            delta = WeightDelta(torch.Size([tensor.shape[0], right.shape[0]]))
            delta._left, delta._right = tensor, right
            deltas[name] = delta
        elif not key.endswith("::right"):
            deltas[key] = WeightDelta.of(tensor)
    return deltas
