"""Paper mode's one LoRA pair for all tasks (`adapter: shared`): what of it outlives a task, and what is folded.

While a task runs the working weights hold W₀ + `folded`, the changes of the cores alone, and the pair adds s B A, its
own sum over all tasks so far. A task's change of such a weight is what the pair moved:

    ΔW = s B A - s B' A'         B', A' as the task found them
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
    """The pair of every weight as the last task left it."""

    def __init__(self) -> None:
        self.folded: dict[str, WeightDelta] = {}
        """What the working weights hold besides W₀ when a task starts."""
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}  # A and B, by weight

    def start(self, pairs: Mapping[str, LoraPair]) -> None:
        """Let a task's pairs begin where the last task stopped."""
        for name, pair in pairs.items():
            if name in self._factors:
                pair.load(*self._factors[name])

    def take_off_earlier(self, name: str, pair: LoraPair, change: WeightDelta) -> None:
        """ΔW ← ΔW - s B' A': leave in a task's change what the pair moved in it."""
        if name in self._factors:
            down, up = self._factors[name]
            change.append(-pair.scale * up.to(pair.up), down.to(pair.down).mT)  # (m, r), (n, r)

    def keep(
        self, pairs: Mapping[str, LoraPair], cores: Mapping[str, LowRankUpdate], deltas: Mapping[str, WeightDelta]
    ) -> None:
        """Keep a finished task's pairs, and what the next one will find folded.

        Args:
            pairs: Of the task.
            cores: By weight: those that have a core.
            deltas: All tasks' changes, the pairs' included.
        """
        self._factors = {name: (_copy(pair.down), _copy(pair.up)) for name, pair in pairs.items()}
        for name in cores:
            folded = WeightDelta(deltas[name].shape)
            folded.add(deltas[name])
            if name in pairs:
                folded.append(-pairs[name].scale * pairs[name].up, pairs[name].down.mT)
            self.folded[name] = folded

    def assume(self, weights: Sequence[TrainedWeight], deltas: Mapping[str, WeightDelta], *, r: int) -> None:
        """Hold what finished tasks leave of these weights, in tensors without data (the meta device).

        Args:
            weights: The trained ones.
            deltas: All tasks' changes of them.
            r: Rows of A.
        """
        for weight in weights:
            m, n = weight.shape
            if weight.lora:
                self._factors[weight.name] = torch.empty(r, n, device="meta"), torch.empty(m, r, device="meta")
            if weight.core:
                delta = deltas[weight.name]
                columns = None if delta.is_dense else delta.rank + r * weight.lora
                self.folded[weight.name] = WeightDelta.without_data(weight.shape, columns)

    def state_dict(self) -> dict[str, Tensor]:
        """`shared/...` and `folded/...`."""
        factors = {f"{name}::{i}": x for name, pair in self._factors.items() for i, x in zip("ab", pair, strict=True)}
        return prefixed("shared", factors) | prefixed("folded", pack_deltas(self.folded))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave; other keys are left alone."""
        shared = without_prefix("shared", state)
        names = [key.removesuffix("::a") for key in shared if key.endswith("::a")]
        self._factors = {name: (shared[f"{name}::a"], shared[f"{name}::b"]) for name in names}
        self.folded = unpack_deltas(without_prefix("folded", state))


def _copy(factor: Tensor) -> Tensor:
    return torch.clone(factor.detach().cpu())
