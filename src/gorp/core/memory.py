"""What must not be forgotten: a basis of protected input directions per weight, each direction with its energy."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gorp.core.linalg import extend_basis, extend_basis_above, project_out_rows
from gorp.errors import ModelError


def room(n: int, budget: float) -> int:
    """The most directions of R^n that a budget, a share in (0, 1], allows; one at least."""
    return max(1, int(budget * n))


class SubspaceMemory:
    """The shared gradient space S of every protected weight, by the weight's name in the base model.

    A torch weight W is (out, in) and answers y = W x, so input directions are what keeps old answers: a change ΔW
    with ΔW S = 0 leaves W x as it was for every x in span(S). The memory belongs to the sequence of tasks, not to
    an optimizer: optimizers are new for each task, and `Optimizer.load_state_dict` would cast the bases to the
    weight's dtype. Bases stay float32 whatever the model's dtype, because bfloat16 cannot hold orthonormal columns
    (error 1e-3 after one cast).

    **At the cap.** At most floor(budget · n) directions (but one at least) are kept for a weight of n inputs. Each
    direction carries its energy: the sum over tasks of the fraction of that task's squared norm lying along it. When
    growth passes the cap, the directions with the least energy make room, whichever task they came from. What earlier
    tasks lost by that is in `released`, what the newest one brought in vain in `left_out`.

    Args:
        energy: ε, the fraction of a task's squared norm that S must hold afterwards, in [0, 1).
        budget: Largest share of a weight's input dimensions that may be protected, in (0, 1].
    """

    def __init__(self, *, energy: float, budget: float = 1.0) -> None:
        if not 0.0 <= energy < 1.0:
            raise ValueError(f"energy is a fraction of the squared norm, in [0, 1); got {energy}")
        if not 0.0 < budget <= 1.0:
            raise ValueError(f"budget is a fraction of a weight's input dimensions, in (0, 1]; got {budget}")
        self.energy, self.budget = energy, budget
        self.released: dict[str, Tensor] = {}
        """Of each weight: the energies of the directions of earlier tasks that made room since `begin_task`."""
        self.left_out: dict[str, Tensor] = {}
        """Of each weight: the energies of the newest task's own directions that found no room."""
        self._basis: dict[str, Tensor] = {}
        self._energy: dict[str, Tensor] = {}
        self._placed: dict[str, Tensor] = {}  # copies of the bases where and as they were last asked for

    def __iter__(self) -> Iterator[str]:
        return iter(self._basis)

    def __len__(self) -> int:
        return len(self._basis)

    def basis(self, name: str, like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """S of `name`, n x s, on the device of `like` (whose last dimension is n); n x 0 if unknown.

        Args:
            name: The weight.
            like: Says n, the device and, where `dtype` does not, the dtype.
            dtype: Of the result.

        Raises:
            ModelError: If the memory holds directions of another dimension than n.
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
        """Start counting what is released; where S is beyond a cap that was lowered, its weakest directions go now."""
        self.released, self.left_out = {}, {}
        for name, energies in list(self._energy.items()):
            if self.size(name) > self.cap(name):
                self._cut(name, self._basis[name], energies, held=len(energies))

    def size(self, name: str) -> int:
        """s: directions held for `name`; 0 if it is unknown."""
        return self._basis[name].shape[1] if name in self._basis else 0

    def dimension(self, name: str) -> int:
        """n: of the space that the directions of `name` lie in."""
        return self._basis[name].shape[0]

    def cap(self, name: str) -> int:
        """The most directions that the budget allows `name`."""
        return room(self.dimension(name), self.budget)

    def is_full(self, name: str) -> bool:
        """Whether S is the whole space, and stays it under the budget: nothing is orthogonal to it."""
        return name in self._basis and min(self.size(name), self.cap(name)) == self.dimension(name)

    def energies(self, name: str) -> Tensor:
        """The energy of each direction of `name`, s numbers in the order of the columns; a sum of fractions."""
        return self._energy[name]

    def capacity(self, name: str) -> float:
        """s / n: the share of the inputs of `name` that is protected; at 1 nothing new can be learned there."""
        n, s = self._basis[name].shape
        return s / n

    def project_rows(self, name: str, x: Tensor) -> Tensor:
        """`x` (p x n) without its component along the protected directions of `name`: X (I - S Sᵀ)."""
        return project_out_rows(x, self.basis(name, x))

    def extend(self, name: str, rows: Tensor) -> int:
        """Protect the main directions of `rows`; return how many are held afterwards minus before.

        Args:
            name: The weight's name in the base model.
            rows: Summary of the finished task, p x n: Adam's first moment, or a sketch of the gradient's rows.
        """
        matrix = rows.detach().to(torch.promote_types(rows.dtype, torch.float32)).mT
        total = matrix.square().sum()
        before = self.basis(name, matrix.mT)
        held = self._energy.get(name, matrix.new_zeros(0)).to(matrix)
        if total == 0:
            self._keep(name, before, held)
            return 0
        basis, added = extend_basis(before, matrix, energy=self.energy)
        held = held + (before.mT @ matrix).square().sum(dim=1) / total  # old directions gain what this task used
        self._cut(name, basis, torch.cat([held, added / total]), held=len(held))
        return self.size(name) - before.shape[1]

    def extend_above(self, names: Sequence[str], moment: Tensor, *, threshold: float) -> None:
        """The same by the second moment of the finished task's inputs, by `gorp.core.linalg.extend_basis_above`.

        Args:
            names: Of the weights that have these inputs, in the base model. Where their S is one as well, the
                eigenvectors are found once.
            moment: M = Σ x xᵀ, n x n, from `gorp.layers.inputs`.
            threshold: τ: a direction is protected if it has more than this times what an average direction has, times
                the share of the space that S holds with it.
        """
        total = moment.trace()
        last: tuple[Tensor, Tensor, Tensor] | None = None  # S before and after, and the energies of what was added
        for name in names:
            before, held = self.basis(name, moment), self._energy.get(name, moment.new_zeros(0)).to(moment)
            if total == 0:
                self._keep(name, before, held)
                continue
            if last is None or not torch.equal(last[0], before):
                last = before, *extend_basis_above(before, moment, threshold=threshold)
            _, basis, added = last
            held = held + ((before.mT @ moment) * before.mT).sum(dim=1) / total  # diag(Sᵀ M S): the task's use of S
            self._cut(name, basis, torch.cat([held, added / total]), held=len(held))

    def state_dict(self) -> dict[str, Tensor]:
        """`<name>` -> S and `<name>::energy` -> energies, float32 on the CPU."""
        energies = {f"{name}::energy": value for name, value in self._energy.items()}
        return dict(self._basis) | energies

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self._basis = {name: value for name, value in state.items() if not name.endswith("::energy")}
        self._energy = {name: state[f"{name}::energy"] for name in self._basis}
        self._placed = {}

    def _cut(self, name: str, basis: Tensor, energies: Tensor, *, held: int) -> None:
        """Keep the strongest directions that the cap allows; the first `held` are those of earlier tasks."""
        keep = self._strongest(energies, cap=room(len(basis), self.budget))
        gone = torch.ones(len(energies), dtype=torch.bool, device=energies.device)
        gone[keep] = False
        for part, record in ((slice(held), self.released), (slice(held, None), self.left_out)):
            if (lost := energies[part][gone[part]].cpu()).numel():
                record[name] = torch.cat([record.get(name, lost.new_zeros(0)), lost])
        self._keep(name, basis[:, keep].contiguous(), energies[keep].contiguous())

    def _keep(self, name: str, basis: Tensor, energies: Tensor) -> None:
        self._basis[name], self._energy[name] = basis.cpu(), energies.cpu()
        self._placed.pop(name, None)

    @staticmethod
    def _strongest(energies: Tensor, cap: int) -> Tensor:
        """Indices of the `cap` largest energies, in their old order."""
        if len(energies) <= cap:
            return torch.arange(len(energies), device=energies.device)
        return energies.argsort(descending=True, stable=True)[:cap].sort().values

    def _check(self, name: str, n: int) -> None:
        held = self._basis[name].shape[0]
        if held != n:
            raise ModelError(
                f"{name}: the memory holds directions of R^{held}, but this weight has {n} inputs. "
                "Was the memory made for another model, or for the output side of the weight?"
            )
