"""What a weight is asked: the second moment of its inputs over the tokens that can reach an answer.

    M = Σ x xᵀ        n x n, over the tokens whose output has a gradient D ≠ 0

A change ΔW moves the answers' path by ‖ΔW M^½‖, whatever the loss was: inputs that the model answers right already
count as much as the others, which the gradient of the loss would forget. Padding, and tokens that no answer depends on
(the prompt's in the last layer of a decoder), have D = 0 and do not count.

In the same pass a random projection of the inputs is taken, from which ‖ΔW Xᵀ‖ of any later ΔW can be estimated when
the rows are gone (`gorp.coverage`):

    R = Xᵀ Ω / √k        n x k, Ω random signs, N x k, so that E ‖ΔW R‖² = ‖ΔW Xᵀ‖²
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from gorp.distributed import broadcast_from_owner
from gorp.watch import Watch


BATCH = 16
"""Rows in a pass that reads inputs, before a task and after it."""

BYTES = 2**30
"""Second moments that are gathered in one pass over the rows; more layers take further passes."""


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


class InputMoment(Watch):
    """Adds up the sums of one layer.

    Args:
        layer: A linear layer.
        seed: Of Ω. A layer's own, so that errors of estimates do not add up over layers. A token's signs depend on the
            seed and on how many tokens counted before it, not on batches and padding.
    """

    def __init__(self, layer: nn.Module, seed: int = 0) -> None:
        self._total: Tensor | None = None
        self._first = self._projected = torch.zeros(())
        self._count = 0
        self._generator = torch.Generator().manual_seed(seed)
        super().__init__(layer)

    @override
    def wants_input(self) -> bool:
        """Always."""
        return True

    @override
    def _watch(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not output.requires_grad:  # nothing before this layer is trained: gradients begin at its output
            output = output.detach().requires_grad_()
        return super()._watch(layer, args, output)

    @override
    def saw(self, x: Tensor, d: Tensor) -> None:
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        counts = (d != 0).any(dim=1)  # N
        x = x * counts[:, None]  # N x n
        signs = self._signs(counts).to(x)  # N x k
        gram, first, projected = x.mT @ x, x.sum(dim=0), x.mT @ signs  # (n, N) @ (N, n), n, (n, N) @ (N, k)
        if self._total is None:
            self._total, self._first, self._projected = gram, first, projected
        else:
            self._total, self._first = self._total + gram, self._first + first
            self._projected = self._projected + projected

    def sums(self) -> InputSums | None:
        """What was added up, the same bits on every rank, which read the same rows; None where nothing came by."""
        if self._total is None:
            return None
        return InputSums(
            total=broadcast_from_owner(self._total),
            first=broadcast_from_owner(self._first),
            count=self._count,
            projected=broadcast_from_owner(self._projected / PROJECTIONS**0.5),
        )

    def _signs(self, counts: Tensor) -> Tensor:
        """Rows of Ω; zero for tokens that do not count."""
        signs = torch.zeros(len(counts), PROJECTIONS)
        where = counts.cpu()
        new = int(where.sum())
        signs[where] = 2.0 * torch.randint(0, 2, (new, PROJECTIONS), generator=self._generator) - 1.0
        self._count += new
        return signs


def input_moments(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[dict[str, Tensor]]
) -> Iterator[tuple[str, InputSums]]:
    """The sums of each layer that an answer of `batches` depends on, one after another, so that few are held at once.

    Forward and backward passes without dropout; no weight needs a gradient, and none is left. All ranks call it
    together, with the same rows.

    Args:
        model: As it serves.
        layers: By the name of their weight.
        batches: Of the task, with labels.
    """
    training = model.training
    seeds = {name: seed for seed, name in enumerate(layers)}
    model.eval()
    try:
        for group in _groups(layers):
            watches = {name: InputMoment(layers[name], seeds[name]) for name in group}
            try:
                for batch in batches:
                    model(**batch).loss.backward()
                    model.zero_grad(set_to_none=True)
            finally:
                for watch in watches.values():
                    watch.remove()
            for name in group:
                sums = watches.pop(name).sums()
                if sums is not None:
                    yield name, sums
    finally:
        model.train(training)


def weight_inputs(
    model: nn.Module,
    names: Sequence[str],
    batches: Callable[[int, int | None], Iterable[dict[str, Tensor]]],
    *,
    rows: int,
) -> Iterator[tuple[str, InputSums]]:
    """The sums over the inputs of the named weights, over rows of a task; see `input_moments`.

    Args:
        model: As it serves.
        names: Of weights of linear layers.
        batches: `TaskContext.batches` of the task: every rank reads the same rows.
        rows: How many are read.
    """
    layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in names}
    return input_moments(model, layers, list(batches(BATCH, rows)))


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
