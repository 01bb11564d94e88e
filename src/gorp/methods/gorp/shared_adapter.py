"""Paper mode's one LoRA pair for all tasks (`adapter: shared`): its factors, and the cores' changes apart from them.

While a task runs, the working weights are W₀ + `core_deltas`, and the pair adds s B A, its change over all tasks. The
pair's change in one task is the difference:

    ΔW = s B A - s B' A'         with B', A' at the start of the task
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gorp.core.state import prefixed, without_prefix
from gorp.layers.lora import LoraPair
from gorp.layers.low_rank import LowRankUpdate
from gorp.methods.gorp.shapes import TrainedWeight
from gorp.weights.delta import WeightDelta, pack_deltas, unpack_deltas


class SharedAdapter:
    """Holds the pair of each weight as the last task left it."""

    def __init__(self) -> None:
        self.core_deltas: dict[str, WeightDelta] = {}
        """Name of a weight -> what the cores of all tasks added to it."""
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}  # weight -> A and B

    def load_into(self, pairs: Mapping[str, LoraPair]) -> None:
        """Load the factors of the last task into a new task's pairs."""
        for name, pair in pairs.items():
            if name in self._factors:
                pair.load(*self._factors[name])

    def subtract_earlier(self, name: str, pair: LoraPair, change: WeightDelta) -> None:
        """ΔW ← ΔW - s B' A': subtract from a task's change what the pair added in earlier tasks."""
        if name in self._factors:
            down, up = self._factors[name]
            change.append(-pair.scale * up.to(pair.up), down.to(pair.down).mT)  # (m, r), (n, r)

    def keep(
        self, pairs: Mapping[str, LoraPair], cores: Mapping[str, LowRankUpdate], deltas: Mapping[str, WeightDelta]
    ) -> None:
        """Store the pairs of a finished task, and the cores' share of the deltas.

        Args:
            pairs: The task's pairs, by weight.
            cores: The layers with a core, by weight.
            deltas: The changes of all tasks, those of the pairs included.
        """
        self._factors = {name: (_copy(pair.down), _copy(pair.up)) for name, pair in pairs.items()}
        for name in cores:
            delta = WeightDelta(deltas[name].shape)
            delta.add(deltas[name])
            if name in pairs:
                delta.append(-pairs[name].scale * pairs[name].up, pairs[name].down.mT)  # (m, r), (n, r)
            self.core_deltas[name] = delta

    def assume(self, weights: Sequence[TrainedWeight], deltas: Mapping[str, WeightDelta], *, r: int) -> None:
        """Set the state to what finished tasks leave, as tensors on the meta device.

        Args:
            weights: The trained weights.
            deltas: The changes of all tasks.
            r: Number of rows of A.
        """
        for weight in weights:
            m, n = weight.shape
            if weight.lora:
                self._factors[weight.name] = torch.empty(r, n, device="meta"), torch.empty(m, r, device="meta")
            if weight.core:
                delta = deltas[weight.name]
                columns = None if delta.is_dense else delta.rank + r * weight.lora
                self.core_deltas[weight.name] = WeightDelta.without_data(weight.shape, columns)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the factors under `shared/…` and the cores' deltas under `folded/…`."""
        factors = {f"{name}::{i}": x for name, pair in self._factors.items() for i, x in zip("ab", pair, strict=True)}
        return prefixed("shared", factors) | prefixed("folded", pack_deltas(self.core_deltas))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned; other keys are ignored."""
        shared = without_prefix("shared", state)
        names = [key.removesuffix("::a") for key in shared if key.endswith("::a")]
        self._factors = {name: (shared[f"{name}::a"], shared[f"{name}::b"]) for name in names}
        self.core_deltas = unpack_deltas(without_prefix("folded", state))


def _copy(factor: Tensor) -> Tensor:
    return torch.clone(factor.detach().cpu())
