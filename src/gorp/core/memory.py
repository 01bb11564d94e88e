"""Subspace memory: for each weight a basis S of protected input directions, with the energy of each direction."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gorp.core.linalg import extend_basis, extend_basis_above, project_out_rows
from gorp.errors import ModelError


def max_directions(n: int, budget: float) -> int:
    """Return the largest number of directions of R^n that `budget`, a share in (0, 1], allows; at least 1."""
    return max(1, int(budget * n))


class SubspaceMemory:
    """The protected subspace S of every protected weight, by the weight's name in the base model.

    A torch weight W has shape (out, in) and computes y = W x. A change ΔW with ΔW S = 0 leaves W x unchanged for every
    x in span(S); this is why S holds input directions. The memory belongs to the sequence of tasks, not to optimizers:
    each task has a new optimizer, and `Optimizer.load_state_dict` would cast the bases to the weight's dtype. Bases are
    float32 (float64 in a float64 model) whatever the model's dtype, because bfloat16 cannot hold orthonormal columns
    (error 1e-3 after one cast).

    **Budget.** At most floor(budget · n) directions, but at least one, are kept for a weight with n inputs. The energy
    of a direction is a sum over tasks: of each task, the fraction of its squared norm along that direction. If S would
    exceed the budget, the directions with the least energy are released, whichever task added them. The
    energies of earlier tasks' directions that were released are in `released`, those of the newest task's directions
    that were not kept in `left_out`.

    Args:
        energy: ε, the fraction of a task's squared norm that S must hold after `extend`, in [0, 1).
        budget: Largest share of a weight's input dimensions that may be protected, in (0, 1].
    """

    def __init__(self, *, energy: float, budget: float = 1.0) -> None:
        if not 0.0 <= energy < 1.0:
            raise ValueError(f"energy must be a fraction of the squared norm, in [0, 1); got {energy}")
        if not 0.0 < budget <= 1.0:
            raise ValueError(f"budget must be a fraction of a weight's input dimensions, in (0, 1]; got {budget}")
        self.energy, self.budget = energy, budget
        self.released: dict[str, Tensor] = {}
        """Energies of the directions of earlier tasks that were released since `begin_task`, by weight."""
        self.left_out: dict[str, Tensor] = {}
        """Energies of the newest task's own directions that were not kept, by weight."""
        self._basis: dict[str, Tensor] = {}
        self._energy: dict[str, Tensor] = {}
        self._placed: dict[str, Tensor] = {}  # cache: each basis on the device and in the dtype last requested

    def __iter__(self) -> Iterator[str]:
        return iter(self._basis)

    def __len__(self) -> int:
        return len(self._basis)

    def basis(self, name: str, like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return S of `name`, n x s, on the device of `like`; n x 0 if the memory has no such weight.

        Args:
            name: Name of the weight.
            like: A tensor whose last dimension is n; it sets the device, and the dtype if `dtype` is None.
            dtype: Dtype of the result.

        Raises:
            ModelError: If the directions in the memory do not have dimension n.
        """
        n, dtype = like.shape[-1], dtype or like.dtype
        if name not in self._basis:
            return torch.zeros(n, 0, device=like.device, dtype=dtype)
        self._check(name, n)
        placed = self._placed.get(name)
        if placed is None or placed.device != like.device or placed.dtype != dtype:
            placed = self._placed[name] = self._basis[name].to(like.device, dtype)
        return placed

    def begin_task(self) -> None:
        """Clear `released` and `left_out`, and drop the weakest directions of each S that exceeds a lowered budget."""
        self.released, self.left_out = {}, {}
        for name, energies in list(self._energy.items()):
            if self.size(name) > self.cap(name):
                self._cut(name, self._basis[name], energies, num_old=len(energies))

    def size(self, name: str) -> int:
        """Return s, the number of directions kept for `name`; 0 if the memory has no such weight."""
        return self._basis[name].shape[1] if name in self._basis else 0

    def dimension(self, name: str) -> int:
        """Return n, the dimension of the directions of `name`."""
        return self._basis[name].shape[0]

    def cap(self, name: str) -> int:
        """Return the largest number of directions that the budget allows for `name`."""
        return max_directions(self.dimension(name), self.budget)

    def is_full(self, name: str) -> bool:
        """Return whether S is the whole space and the budget keeps it so; then no change of the weight is possible."""
        return name in self._basis and min(self.size(name), self.cap(name)) == self.dimension(name)

    def energies(self, name: str) -> Tensor:
        """Return the energy of each direction of `name`, s numbers in the order of the columns: sums of fractions."""
        return self._energy[name]

    def capacity(self, name: str) -> float:
        """Return s / n, the share of the input space of `name` that is protected; at 1 the weight cannot change."""
        n, s = self._basis[name].shape
        return s / n

    def project_rows(self, name: str, x: Tensor) -> Tensor:
        """Return `x`, p x n, without its component in S of `name`: X (I - S Sᵀ)."""
        return project_out_rows(x, self.basis(name, x))

    def extend(self, name: str, rows: Tensor) -> int:
        """Protect the main directions of `rows` by the energy rule of `extend_basis`.

        Args:
            name: The weight's name in the base model.
            rows: Summary of the finished task, p x n: Adam's first moment, or a sketch of the gradient's rows.

        Returns:
            The number of directions kept after the call minus the number before it.
        """
        matrix = rows.detach().to(torch.promote_types(rows.dtype, torch.float32)).mT  # M, n x p
        total = matrix.square().sum()
        before = self.basis(name, matrix.mT)
        energies = self._energy.get(name, matrix.new_zeros(0)).to(matrix)
        if total == 0:  # a task without gradients: nothing to protect
            self._store(name, before, energies)
            return 0
        basis, added = extend_basis(before, matrix, energy=self.energy)
        # An old direction u gains the fraction of this task that lies along it: ‖uᵀ M‖² / ‖M‖².
        energies = energies + (before.mT @ matrix).square().sum(dim=1) / total  # (s, n) @ (n, p)
        self._cut(name, basis, torch.cat([energies, added / total]), num_old=len(energies))
        return self.size(name) - before.shape[1]

    def extend_above(self, names: Sequence[str], moment: Tensor, *, threshold: float) -> None:
        """Protect the directions in which the task's inputs exceed a threshold, by `extend_basis_above`.

        Args:
            names: Names in the base model of the weights that have these inputs. The eigenvectors are computed once
                for consecutive weights whose S is equal too.
            moment: M = Σ x xᵀ, n x n, the second moment of the finished task's inputs, from `gorp.layers.inputs`.
            threshold: τ. A direction is protected if its eigenvalue exceeds τ times the mean eigenvalue, times the
                capacity of S once the direction is added.
        """
        total = moment.trace()
        last: tuple[Tensor, Tensor, Tensor] | None = None  # S before, S after, energies of the added directions
        for name in names:
            before, energies = self.basis(name, moment), self._energy.get(name, moment.new_zeros(0)).to(moment)
            if total == 0:
                self._store(name, before, energies)
                continue
            if last is None or not torch.equal(last[0], before):
                last = before, *extend_basis_above(before, moment, threshold=threshold)
            _, basis, added = last
            # diag(Sᵀ M S) / tr M: the fraction of this task along each old direction. (s, n) @ (n, n)
            energies = energies + ((before.mT @ moment) * before.mT).sum(dim=1) / total
            self._cut(name, basis, torch.cat([energies, added / total]), num_old=len(energies))

    def protect(self, name: str, directions: Tensor, energies: Tensor) -> None:
        """Protect given directions of a weight that has no S yet; those with the most energy if not all have room.

        Args:
            name: The weight's name in the base model.
            directions: Orthonormal columns, n x p, float32 or wider.
            energies: Fraction of the task's squared norm along each of them, p numbers.
        """
        if self.size(name):
            raise ValueError(f"{name}: has an S already")
        self._cut(name, directions, energies, num_old=0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return `<name>` -> S and `<name>::energy` -> energies, on the CPU."""
        energies = {f"{name}::energy": value for name, value in self._energy.items()}
        return dict(self._basis) | energies

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the contents by those of a `state_dict`."""
        self._basis = {name: value for name, value in state.items() if not name.endswith("::energy")}
        self._energy = {name: state[f"{name}::energy"] for name in self._basis}
        self._placed = {}

    def _cut(self, name: str, basis: Tensor, energies: Tensor, *, num_old: int) -> None:
        """Store the strongest directions within the budget; the first `num_old` are those of earlier tasks."""
        keep = self._strongest(energies, cap=max_directions(len(basis), self.budget))
        removed = torch.ones(len(energies), dtype=torch.bool, device=energies.device)
        removed[keep] = False
        for part, record in ((slice(num_old), self.released), (slice(num_old, None), self.left_out)):
            if (lost := energies[part][removed[part]].cpu()).numel():
                record[name] = torch.cat([record.get(name, lost.new_zeros(0)), lost])
        self._store(name, basis[:, keep].contiguous(), energies[keep].contiguous())

    def _store(self, name: str, basis: Tensor, energies: Tensor) -> None:
        self._basis[name], self._energy[name] = basis.cpu(), energies.cpu()
        self._placed.pop(name, None)

    @staticmethod
    def _strongest(energies: Tensor, cap: int) -> Tensor:
        """Return the indices of the `cap` largest energies in ascending order, so that columns keep their order."""
        if len(energies) <= cap:
            return torch.arange(len(energies), device=energies.device)
        return energies.argsort(descending=True, stable=True)[:cap].sort().values

    def _check(self, name: str, n: int) -> None:
        dimension = self._basis[name].shape[0]
        if dimension != n:
            raise ModelError(
                f"{name}: the memory holds directions of R^{dimension}, but this weight has {n} inputs. "
                "Was the memory made for another model, or for the output side of the weight?"
            )
