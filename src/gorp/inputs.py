"""What a weight is asked: the second moment of its inputs over the tokens that can reach an answer.

    M = Σ x xᵀ        n x n, over the tokens whose output has a gradient D ≠ 0

A change ΔW moves the answers' path by ‖ΔW M^½‖, whatever the loss was: inputs that the model answers right already
count as much as the others, which the gradient of the loss would forget. Padding, and tokens that no answer depends on
(the prompt's in the last layer of a decoder), have D = 0 and do not count.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from gorp.watch import Watch


BYTES = 2**30
"""Second moments that are gathered in one pass over the rows; more layers take further passes."""


class InputMoment(Watch):
    """M of one layer, n x n, float32 (float64 in a float64 model), on the layer's device."""

    def __init__(self, layer: nn.Module) -> None:
        self.total: Tensor | None = None
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
        x = x * (d != 0).any(dim=1, keepdim=True)  # N x n
        gram = x.mT @ x  # (n, N) @ (N, n)
        self.total = gram if self.total is None else self.total + gram


def input_moments(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[dict[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """M of each layer that an answer of `batches` depends on, one after another, so that few are held at a time.

    Forward and backward passes without dropout; no weight needs a gradient, and none is left.

    Args:
        model: As it serves.
        layers: By the name of their weight.
        batches: Of the task, with labels.
    """
    training = model.training
    model.eval()
    try:
        for group in _groups(layers):
            watches = {name: InputMoment(layers[name]) for name in group}
            try:
                for batch in batches:
                    model(**batch).loss.backward()
                    model.zero_grad(set_to_none=True)
            finally:
                for watch in watches.values():
                    watch.remove()
            for name in group:
                total = watches.pop(name).total
                if total is not None:
                    yield name, total
    finally:
        model.train(training)


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
