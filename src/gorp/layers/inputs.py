"""What a weight is asked: the second moment of its inputs over the tokens that can reach an answer.

    M = Σ x xᵀ        n x n, over the tokens whose output has a gradient D ≠ 0

A change ΔW moves the answers' path by ‖ΔW M^½‖, whatever the loss was: inputs that the model answers right already
count as much as the others, which the gradient of the loss would forget. Padding, and tokens that no answer depends on
(the prompt's in the last layer of a decoder), have D = 0 and do not count.

In the same pass a random projection of the inputs is taken, from which ‖ΔW Xᵀ‖ of any later ΔW can be estimated when
the rows are gone (`gorp.protection.coverage`):

    R = Xᵀ Ω / √k        n x k, Ω random signs, N x k, so that E ‖ΔW R‖² = ‖ΔW Xᵀ‖²
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from gorp.core.distributed import broadcast_from_owner
from gorp.layers.names import layers_of
from gorp.layers.watch import Watch


BATCH = 16
"""Rows in a pass that reads inputs, before a task and after it."""

BYTES = 2**30
"""Second moments that are gathered in one pass over the rows; more layers take further passes."""


Batches = Callable[[int, int | None], Iterable[dict[str, Tensor]]]
"""`batches(batch_size, limit)`: rows of a task; see `TaskContext`."""

PROJECTIONS = 8
"""k: columns of R."""


@dataclass(frozen=True, kw_only=True)
class InputSums:
    """Sums over the N tokens that count, float32 (float64 in a float64 model), on the layer's device."""

    total: Tensor
    """M = Σ x xᵀ, n x n."""
    first: Tensor
    """Σ x, n numbers."""
    count: int
    """N."""
    projected: Tensor
    """R = Xᵀ Ω / √k, n x k."""


class Sums(NamedTuple):
    """What one input has added up to; never changed, so that layers may share it until they read different inputs."""

    total: Tensor
    first: Tensor
    projected: Tensor
    tokens: int
    generator: Tensor
    """The state of Ω's randomness behind the tokens so far."""


class SharedInputs:
    """Adds an input up once for all layers that read it: query, key and value; gate and up.

    Two layers share their sums as long as each of their inputs is the same memory and the same tokens count. The last
    inputs are held until `clear`, so that no other tensor can take their memory in between; not more of them, which
    under gradient checkpointing would be the activations of the whole model.
    """

    HELD = 4

    def __init__(self) -> None:
        self._last: deque[tuple[Sums | int, Tensor, Tensor, Sums]] = deque(maxlen=self.HELD)

    @torch.no_grad()
    def add(self, before: Sums | int, x: Tensor, counts: Tensor) -> Sums:
        """The sums with those of `x`.

        Args:
            before: Sums of the earlier batches; of the first batch, the seed of Ω.
            x: N x n, one row a token.
            counts: Which of the N tokens count.
        """
        for old, held, other, after in self._last:
            same = before is old or (isinstance(before, int) and isinstance(old, int))
            if same and x.data_ptr() == held.data_ptr() and x.shape == held.shape and torch.equal(counts, other):
                return after
        generator = torch.Generator()
        if isinstance(before, int):
            generator.manual_seed(before)
        else:
            generator.set_state(before.generator)
        wide = x.to(torch.promote_types(x.dtype, torch.float32)) * counts[:, None]  # N x n
        signs, where = torch.zeros(len(counts), PROJECTIONS), counts.cpu()
        new = int(where.sum())
        signs[where] = 2.0 * torch.randint(0, 2, (new, PROJECTIONS), generator=generator) - 1.0
        total, first = wide.mT @ wide, wide.sum(dim=0)  # (n, N) @ (N, n), n
        projected = wide.mT @ signs.to(wide)  # (n, N) @ (N, k)
        if not isinstance(before, int):
            total, first, projected = before.total + total, before.first + first, before.projected + projected
            new += before.tokens
        after = Sums(total, first, projected, new, generator.get_state())
        self._last.append((before, x, counts, after))
        return after

    def clear(self) -> None:
        """Let go of the inputs of a batch."""
        self._last.clear()


class InputMoment(Watch):
    """Adds up the sums of one layer.

    Args:
        layer: A linear layer.
        seed: Of Ω. Layers with different inputs have their own, so that errors of estimates do not add up over layers.
            A token's signs depend on the seed and on how many tokens counted before it, not on batches and padding.
        shared: Of the layers that are read in the same pass.
    """

    def __init__(self, layer: nn.Module, seed: int = 0, shared: SharedInputs | None = None) -> None:
        self.sums: Sums | int = seed
        """The sums; before anything came by, the seed."""
        self._shared = shared or SharedInputs()
        super().__init__(layer)

    @override
    def _watch(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not output.requires_grad:  # nothing before this layer is trained: gradients begin at its output
            output = output.detach().requires_grad_()
        return super()._watch(layer, args, output)

    @override
    def add(self, x: Tensor, d: Tensor) -> None:
        self.sums = self._shared.add(self.sums, x.detach(), (d != 0).any(dim=1))


def input_moments(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[dict[str, Tensor]]
) -> Iterator[tuple[list[str], InputSums]]:
    """The sums of each layer that an answer of `batches` depends on, one after another, so that few are held at once.

    Forward and backward passes without dropout; no weight needs a gradient, and none is left. All ranks call it
    together, with the same rows.

    Args:
        model: As it serves.
        layers: By the name of their weight.
        batches: Of the task, with labels.

    Yields:
        Names of the layers that read one input, and the sums over it.
    """
    training = model.training
    seeds = {name: seed for seed, name in enumerate(layers)}
    model.eval()
    try:
        for group in _groups(layers):
            shared = SharedInputs()
            watches = {name: InputMoment(layers[name], seeds[name], shared) for name in group}
            try:
                for batch in batches:
                    model(**batch).loss.backward()
                    model.zero_grad(set_to_none=True)
                    shared.clear()
            finally:
                for watch in watches.values():
                    watch.remove()
            readers: dict[int, list[str]] = {}
            for name, watch in watches.items():
                if not isinstance(watch.sums, int):  # something came by
                    readers.setdefault(id(watch.sums), []).append(name)
            for names in readers.values():
                sums = [watches.pop(name).sums for name in names]  # one object, as often
                yield names, on_all_ranks(sums[0])
    finally:
        model.train(training)


def on_all_ranks(sums: Sums | int) -> InputSums:
    """The same bits on every rank, which read the same rows."""
    assert isinstance(sums, Sums)
    return InputSums(
        total=broadcast_from_owner(sums.total),
        first=broadcast_from_owner(sums.first),
        count=sums.tokens,
        projected=broadcast_from_owner(sums.projected / PROJECTIONS**0.5),
    )


def weight_inputs(
    model: nn.Module,
    names: Sequence[str],
    batches: Batches,
    *,
    rows: int,
) -> Iterator[tuple[list[str], InputSums]]:
    """The sums over the inputs of the named weights, over rows of a task; see `input_moments`.

    Args:
        model: As it serves.
        names: Of weights of linear layers.
        batches: `TaskContext.batches` of the task: every rank reads the same rows.
        rows: How many are read.
    """
    return input_moments(model, layers_of(model, names), list(batches(BATCH, rows)))


def _groups(layers: Mapping[str, nn.Module]) -> Iterable[list[str]]:
    """Names in order, cut where their moments would take more than `BYTES`."""
    groups: list[list[str]] = []
    room = 0
    for name, layer in layers.items():
        size = 4 * int(layer.in_features) ** 2  # pyright: ignore[reportArgumentType]
        if not groups or size > room:
            groups.append([])
            room = BYTES
        groups[-1].append(name)
        room -= size
    return groups
