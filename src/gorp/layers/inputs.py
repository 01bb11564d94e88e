"""Sums over the inputs of linear layers, taken over the tokens that an answer depends on.

    M = Σ x xᵀ    n x n, over the tokens with D ≠ 0, D the gradient of the output, here or in a layer beside it

A change ΔW changes the outputs at these tokens by ‖ΔW M^½‖. M does not depend on the size of the loss: inputs for which
the model already answers correctly count like all others, whereas gradients of the loss would omit them. Padding, and
tokens on which no answer depends (prompt tokens in the last layer of a decoder), have D = 0 and do not count.

The same pass takes a random projection of the inputs. From it, ‖ΔW Xᵀ‖ of any later ΔW can be estimated without the
rows (`gorp.protection.coverage`):

    R = Xᵀ Ω / √k        n x k, Ω random signs, N x k, so that E ‖ΔW R‖² = ‖ΔW Xᵀ‖²
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from gorp.core.distributed import broadcast_from_owner
from gorp.layers.low_rank import linear_of
from gorp.layers.names import layers_of
from gorp.layers.watch import Watch


BATCH = 16
"""Rows per batch when inputs are read before and after a task."""

TOKENS = 4096
"""Most tokens in such a batch, so that long rows fit into memory. It must not depend on the training's batches:
sums are rounded differently in other batches, and a step would then depend on how its rows are divided."""

LOOKED_AT = 256
"""Number of the drawn rows whose lengths decide how many are read at once."""

BYTES = 2**30
"""Limit on the second moments that are accumulated in one pass over the rows; further layers take further passes."""


Batches = Callable[[int, int | None], Iterable[dict[str, Tensor]]]
"""`batches(batch_size, limit)` returns batches of a task's rows; see `TaskContext`."""

Reading = Callable[[int, int], None]
"""Called with the number of finished passes and of all passes, while rows are read; see `TaskContext.reading`."""

PROJECTIONS = 8
"""k, the number of columns of R."""


@dataclass(frozen=True, kw_only=True)
class InputSums:
    """Sums over the N tokens that count, float32 (float64 in a float64 model), on the layer's device.

    An object is never modified, so that layers with the same inputs can share one until their inputs differ.
    """

    total: Tensor
    """M = Σ x xᵀ, n x n."""
    first: Tensor
    """Σ x, n numbers."""
    count: int
    """N."""
    signed: Tensor
    """Xᵀ Ω, n x k."""
    generator: Tensor
    """State of the random generator of Ω after the N tokens."""

    @property
    def projected(self) -> Tensor:
        """R = Xᵀ Ω / √k, n x k."""
        return self.signed / PROJECTIONS**0.5


def rows_at_once(size: int, rows: Iterable[Any]) -> int:
    """Return how many of `rows` are read at once: at most `size`, and at most `TOKENS` tokens when padded.

    Args:
        size: Wanted rows in a batch.
        rows: Encoded rows; without `input_ids` their length is not known, and the result is `size`.
    """
    lengths = [len(row["input_ids"]) for row in rows if isinstance(row, Mapping) and "input_ids" in row]
    return max(1, min(size, TOKENS // max([1, *lengths])))


class SharedInputs:
    """Computes the sums of an input once for all layers that have it: query, key and value; gate and up.

    Two layers have the same input if it occupies the same memory, and share its sums if the same tokens count. The last
    `HELD` inputs are kept, so that no other tensor can reuse their memory in the meantime. More are not kept: under
    gradient checkpointing they would amount to the activations of the whole model.
    """

    HELD = 4

    def __init__(self) -> None:
        # Of each recent input: X, and its layers with the tokens that count for them.
        self._inputs: deque[tuple[Tensor, list[tuple[InputMoment, Tensor]]]] = deque()

    def add(self, reader: "InputMoment", x: Tensor, counts: Tensor) -> None:
        """Note that `reader` has the input `x`, N x n, of which the tokens `counts`, N booleans, count for it."""
        for held, readers in self._inputs:
            same = x.data_ptr() == held.data_ptr() and x.shape == held.shape
            if same and all(reader is not other for other, _ in readers):
                readers.append((reader, counts))
                return
        self._inputs.append((x, [(reader, counts)]))
        if len(self._inputs) > self.HELD:
            self._sum(*self._inputs.popleft())

    def finish(self) -> None:
        """Add all inputs that are held to the sums of their layers; call it at the end of a batch."""
        while self._inputs:
            self._sum(*self._inputs.popleft())

    @torch.no_grad()
    def _sum(self, x: Tensor, readers: "list[tuple[InputMoment, Tensor]]") -> None:
        """Add one input to the sums of its layers.

        A token counts for all layers of one module if it counts for one of them. Otherwise rounding would decide on the
        query of a sequence's first token: it has only itself to attend to, so its gradient is the difference of two
        equal numbers.
        """
        counted: dict[str, Tensor] = {}
        for reader, counts in readers:
            counted[reader.module] = counted.get(reader.module, counts) | counts
        done: list[tuple[InputSums | None, Tensor, InputSums]] = []  # the sums before, counts, the sums after
        for reader, _ in readers:
            counts = counted[reader.module]
            after = [new for old, same, new in done if old is reader.sums and torch.equal(same, counts)]
            if not after:
                after = [_plus(reader.sums, x, counts, seed=reader.seed)]
                done.append((reader.sums, counts, after[0]))
            reader.sums = after[0]


def _plus(before: InputSums | None, x: Tensor, counts: Tensor, *, seed: int) -> InputSums:
    """Return the sums `before`, None for the first batch, plus those of `x`; `seed` is that of Ω in the first."""
    generator = torch.Generator()
    if before is None:
        generator.manual_seed(seed)
    else:
        generator.set_state(before.generator)
    wide = x.to(torch.promote_types(x.dtype, torch.float32)) * counts[:, None]  # X, N x n
    # Signs are drawn for the tokens that count only, so that padding does not change those of later tokens.
    signs, where = torch.zeros(len(counts), PROJECTIONS), counts.cpu()
    count = int(where.sum())
    signs[where] = 2.0 * torch.randint(0, 2, (count, PROJECTIONS), generator=generator) - 1.0
    total, first = wide.mT @ wide, wide.sum(dim=0)  # (n, N) @ (N, n), n
    signed = wide.mT @ signs.to(wide)  # (n, N) @ (N, k)
    if before is not None:
        total, first, signed = before.total + total, before.first + first, before.signed + signed
        count += before.count
    return InputSums(total=total, first=first, count=count, signed=signed, generator=generator.get_state())


class InputMoment(Watch):
    """Accumulates the input sums of one layer.

    Args:
        layer: A linear layer.
        seed: Seed of Ω. Layers with different inputs have different seeds, so that the errors of their estimates are
            independent. The signs of a token depend on the seed and on the number of tokens that counted before it,
            not on the division into batches or on padding.
        shared: Shared by all layers that are read in the same pass.
        module: Name of the module that the layer is in, such as that of an attention.
    """

    def __init__(self, layer: nn.Module, seed: int, shared: SharedInputs, *, module: str = "") -> None:
        self.sums: InputSums | None = None
        """The sums of the batches that `shared` has finished; None before the first."""
        self.seed, self.module, self._shared = seed, module, shared
        super().__init__(layer)

    @override
    def _watch(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        # If nothing before this layer is trained, its output needs no gradient. Make gradients start at this output.
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        return super()._watch(layer, args, output)

    @override
    def add(self, x: Tensor, d: Tensor) -> None:
        self._shared.add(self, x.detach(), (d != 0).any(dim=1))


def input_moments(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[dict[str, Tensor]],
    reading: Reading = lambda done, total: None,
) -> Iterator[tuple[list[str], InputSums]]:
    """Yield the input sums of each layer on which an answer of `batches` depends, one at a time to save memory.

    Runs forward and backward passes without dropout. No weight needs a gradient, and none has one afterwards. All ranks
    call this together, with the same rows.

    Args:
        model: The model with its served weights.
        layers: Linear layers by the name of their weight.
        batches: Batches of the task, with labels.
        reading: Called after each forward and backward pass.

    Yields:
        The names of the layers that share one input, and the sums over it.
    """
    training = model.training
    seeds = {name: seed for seed, name in enumerate(layers)}
    model.eval()
    try:
        groups = list(_groups(layers))
        for number, group in enumerate(groups):
            shared = SharedInputs()
            watches = {n: InputMoment(layers[n], seeds[n], shared, module=_module(n)) for n in group}
            try:
                for done, batch in enumerate(batches, 1 + number * len(batches)):
                    model(**batch).loss.backward()
                    model.zero_grad(set_to_none=True)
                    shared.finish()
                    reading(done, len(groups) * len(batches))
            finally:
                for watch in watches.values():
                    watch.remove()
            readers: dict[int, list[str]] = {}  # layers with the same `InputSums` object have the same inputs
            for name, watch in watches.items():
                if watch.sums is not None:  # None: no backward pass reached the layer
                    readers.setdefault(id(watch.sums), []).append(name)
            for names in readers.values():
                sums = [watches.pop(name).sums for name in names]  # pop: free the memory when the next one is yielded
                yield names, on_all_ranks(sums[0])
    finally:
        model.train(training)


def on_all_ranks(sums: InputSums | None) -> InputSums:
    """Return rank 0's sums on every rank. All ranks read the same rows, but rounding may differ between them."""
    assert sums is not None
    return replace(
        sums,
        total=broadcast_from_owner(sums.total),
        first=broadcast_from_owner(sums.first),
        signed=broadcast_from_owner(sums.signed),
    )


def weight_inputs(
    model: nn.Module,
    names: Sequence[str],
    batches: Batches,
    *,
    rows: int,
    reading: Reading = lambda done, total: None,
) -> Iterator[tuple[list[str], InputSums]]:
    """Yield the input sums of the named weights over rows of a task; see `input_moments`.

    Args:
        model: The model with its served weights.
        names: Names of weights of linear layers.
        batches: `TaskContext.batches` of the task; every rank reads the same rows.
        rows: Number of rows to read.
        reading: `TaskContext.reading` of the task.
    """
    return input_moments(model, layers_of(model, names), list(batches(BATCH, rows)), reading)


def _groups(layers: Mapping[str, nn.Module]) -> Iterable[list[str]]:
    """Split the names, in order, into groups whose second moments take about `BYTES`; a module is not split."""
    groups: list[list[str]] = []
    room, last = 0, None
    for name, layer in layers.items():
        weight = linear_of(layer).weight
        size = max(4, weight.element_size()) * weight.shape[1] ** 2  # M is float32, or float64 in a float64 model
        if not groups or (size > room and _module(name) != last):
            groups.append([])
            room = BYTES
        groups[-1].append(name)
        room, last = room - size, _module(name)
    return groups


def _module(weight: str) -> str:
    """Return the name of the module that the layer of a weight is in: a.b for a.b.q_proj.weight."""
    return ".".join(weight.split(".")[:-2])
