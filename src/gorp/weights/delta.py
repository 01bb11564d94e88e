"""What training added to a weight, kept apart from it, in float32."""

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightDelta:
    """W - W₀ of one parameter: factored (L Rᵀ) while that is smaller than dense, dense once it is not.

    A base weight is never modified in place: a bfloat16 weight of 0.02 loses an update of 1e-6 entirely. Folds
    append to the delta exactly; the working weight is round(W₀ + delta), computed from the exact parts. The task at
    hand keeps its delta on the device of the weight, finished tasks keep theirs in main memory.

    Args:
        shape: Shape of the parameter. Only matrices can be factored.
    """

    def __init__(self, shape: torch.Size) -> None:
        self.shape = torch.Size(shape)
        self._dense: Tensor | None = None
        self._left: Tensor | None = None
        self._right: Tensor | None = None

    @classmethod
    def of(cls, dense: Tensor) -> "WeightDelta":
        """A dense delta holding `dense`, converted to float32."""
        delta = cls(dense.shape)
        delta._dense = _wide(dense)
        return delta

    @property
    def rank(self) -> int:
        """Columns of the factors; 0 for an empty delta, min(m, n) for a dense one."""
        if self._dense is not None:
            return min(self.shape)
        return 0 if self._left is None else self._left.shape[1]

    @property
    def is_dense(self) -> bool:
        """Whether the factors have been multiplied out."""
        return self._dense is not None

    def append(self, left: Tensor, right: Tensor) -> None:
        """Add `left` `right`ᵀ, m x r and n x r, exactly; multiply out when the factors outgrow the matrix."""
        left, right = _wide(left), _wide(right)
        if self._dense is not None:
            self._dense = torch.addmm(self._dense, left.to(self._dense), right.to(self._dense).mT)
            return
        if self._left is not None and self._right is not None:
            left = torch.cat([self._left, left.to(self._left)], dim=1)
            right = torch.cat([self._right, right.to(self._right)], dim=1)
        self._left, self._right = left.contiguous(), right.contiguous()
        m, n = self.shape
        if self._left.shape[1] * (m + n) >= m * n:
            self._dense, self._left, self._right = self._left @ self._right.mT, None, None

    def add(self, other: "WeightDelta") -> None:
        """Add another delta of the same parameter."""
        if other._left is not None and other._right is not None:
            self.append(other._left, other._right)
        elif other._dense is not None:
            self._dense, self._left, self._right = self.dense() + other._dense, None, None

    def since(self, earlier: "WeightDelta") -> "WeightDelta":
        """What was added after `earlier`, a former state of this delta: the columns appended since, or a difference."""
        if self._left is not None and self._right is not None and not earlier.is_dense:
            added = WeightDelta(self.shape)
            if earlier._left is None or earlier._right is None:
                added._left, added._right = self._left, self._right
                return added
            r, left, right = earlier.rank, earlier._left.to(self._left), earlier._right.to(self._right)
            if torch.equal(self._left[:, :r], left) and torch.equal(self._right[:, :r], right):
                added._left, added._right = self._left[:, r:], self._right[:, r:]
                return added
        return WeightDelta.of(self.dense() - earlier.dense().to(self.dense()))

    def recompress(self, tolerance: float) -> float:
        """Shorten the factors by QR and a small SVD; return the relative error made, at most `tolerance`.

            L = Q_l R_l,  R = Q_r R_r,  R_l R_rᵀ = U Σ Vᵀ,  L Rᵀ = (Q_l U Σ) (Q_r V)ᵀ

        Dropped are the smallest singular values of joint norm at most `tolerance` · ‖L Rᵀ‖. The rows that stay are
        combinations of the rows there were: a delta orthogonal to S stays orthogonal to S.
        """
        if self._left is None or self._right is None:
            return 0.0
        q_left, r_left = torch.linalg.qr(self._left)
        q_right, r_right = torch.linalg.qr(self._right)
        u, sigma, v_t = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
        # tail[i]: norm of what is dropped when i are kept. On the CPU: CUDA has no deterministic sum of this kind.
        tail = sigma.cpu().square().flip(0).cumsum(0).flip(0).sqrt()
        total = tail[0].clone() if len(tail) else torch.zeros(())
        keep = max(1, int((tail > tolerance * total).sum()))
        self._left = (q_left @ (u * sigma)[:, :keep]).contiguous()
        self._right = (q_right @ v_t.mT[:, :keep]).contiguous()
        return (tail[keep] / total).item() if keep < len(tail) and total > 0 else 0.0

    def dense(self) -> Tensor:
        """The delta multiplied out, float32."""
        if self._dense is not None:
            return self._dense
        if self._left is None or self._right is None:
            return torch.zeros(self.shape)
        return self._left @ self._right.mT

    def add_to(self, total: Tensor, rows: slice) -> None:
        """Add rows `rows` of the delta to `total`, in place, in the dtype and on the device of `total`."""
        if self._dense is not None:
            total += self._dense[rows].to(total)
        elif self._left is not None and self._right is not None and self._left.shape[1]:
            total.addmm_(self._left[rows].to(total), self._right.to(total).mT)

    def to(self, device: torch.device | str) -> "WeightDelta":
        """The same on `device`; sharing what is there already."""
        moved = WeightDelta(self.shape)
        moved._dense, moved._left, moved._right = (
            None if x is None else x.to(device) for x in (self._dense, self._left, self._right)
        )
        return moved

    def times(self, x: Tensor) -> Tensor:
        """delta @ `x` without multiplying out; x is n x p."""
        if self._left is not None and self._right is not None:
            return self._left @ (self._right.mT @ x.to(self._right))
        return self.dense() @ x.to(self.dense())

    def norm(self) -> float:
        """‖delta‖, Frobenius: from the factors ‖L Rᵀ‖² = tr((LᵀL)(RᵀR)), in float64, without multiplying out."""
        if self._left is not None and self._right is not None:
            left, right = self._left.double(), self._right.double()
            return ((left.mT @ left) * (right.mT @ right)).sum().clamp(min=0).sqrt().item()
        return 0.0 if self._dense is None else self._dense.norm().item()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What goes into a file: `<name>` when dense, `<name>::left` and `<name>::right` when factored."""
        if self._dense is not None:
            return {name: self._dense}
        if self._left is not None and self._right is not None:
            return {f"{name}::left": self._left, f"{name}::right": self._right}
        if len(self.shape) != 2:
            return {name: self.dense()}
        # Still factored, with no column: a dense zero would add later factors in another order of rounding.
        return {f"{name}::left": torch.zeros(self.shape[0], 0), f"{name}::right": torch.zeros(self.shape[1], 0)}


def leak(change: WeightDelta, basis: Tensor) -> float:
    """The share of a weight's change that acts on protected inputs: ‖ΔW S‖ / ‖ΔW‖, Frobenius, in [0, 1].

    Args:
        change: ΔW, m x n.
        basis: S, n x s.
    """
    size = change.norm()
    return change.times(basis).norm().item() / size if size > 0 else 0.0


def _wide(x: Tensor) -> Tensor:
    """Float32, or float64 where float64 came: the delta of a float64 model is as exact as the model."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def pack_deltas(deltas: Mapping[str, WeightDelta]) -> dict[str, Tensor]:
    """The tensors of `delta.safetensors`: per weight one dense or two factors, float32."""
    return {key: tensor.float() for name, delta in deltas.items() for key, tensor in delta.tensors(name).items()}


def unpack_deltas(tensors: Mapping[str, Tensor]) -> dict[str, WeightDelta]:
    """The inverse of `pack_deltas`."""
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
