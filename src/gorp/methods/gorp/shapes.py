"""The largest state that finished tasks can leave in GORP, and its own work in a step, from shapes and options.

A weight of m x n keeps 4·s·(n + 1) bytes of S and its energies between tasks, and 4·min(R·(m + n), m·n) bytes of delta.
The size s of S and the rank R of a task's change are not known in advance, so both are the largest that a task can
reach.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from gorp.core.frame import offsets
from gorp.core.memory import max_directions
from gorp.layers.names import weight_name
from gorp.methods.base import Work
from gorp.methods.gorp.config import GorpConfig
from gorp.weights.base import BaseWeights


@dataclass(frozen=True, kw_only=True)
class TrainedWeight:
    """A weight that GORP trains, m x n."""

    name: str
    """Name in the base model's `state_dict`."""
    shape: torch.Size
    core: bool
    """Whether it has a core C, k x k."""
    lora: bool
    """Whether it has a LoRA pair."""


def trained_weights(weights: BaseWeights, *, cores: Sequence[str], pairs: Sequence[str]) -> list[TrainedWeight]:
    """Return the weights of the layers that get a core or a LoRA pair, those with a core first."""
    return [
        TrainedWeight(
            name=weight_name(layer),
            shape=weights.parameter(weight_name(layer)).shape,
            core=layer in cores,
            lora=layer in pairs,
        )
        for layer in dict.fromkeys([*cores, *pairs])
    ]


def directions(
    weights: Sequence[TrainedWeight], config: GorpConfig, r: int, *, tasks: int, steps: int | None
) -> dict[str, tuple[int, int]]:
    """Return for each basis S its dimension n and the most directions that `tasks` tasks can add within the budget.

    A task adds as many directions as its first moments have rows (r of A, k of C), as its sketch has rows, or as its
    inputs have dimensions, at most n.

    Args:
        weights: The trained weights, in the order of `trained_weights`.
        config: The options, with every None resolved.
        r: Number of rows of A.
        tasks: Number of finished tasks.
        steps: Optimizer steps of each task; None if not known.
    """
    added: dict[str, tuple[int, int]] = {}
    paper, source = config.mode == "paper", config.memory_source
    refreshes = refresh_counts(weights, config, steps)
    for weight in weights:
        name, (_, n), k = weight.name, weight.shape, config.rank
        if source == "inputs":
            added[name] = (n, n)
            continue
        if paper and weight.core:
            added[f"{name}::core"] = (k, k)
        if paper and weight.lora and config.adapter_side == "rank":
            added[f"{name}::rank"] = (r, r)
        elif source == "sketch" and (weight.lora or not paper):
            added[name] = (n, _sketch_rows(config, n, refreshes[name]))
        elif rows := r * weight.lora + k * (weight.core and not paper):
            added[name] = (n, rows)
    budget = config.budget or 1.0
    return {key: (n, min(max_directions(n, budget), tasks * min(rows, n))) for key, (n, rows) in added.items()}


def delta_rank(weight: TrainedWeight, config: GorpConfig, r: int, *, refreshes: int | None) -> int | None:
    """Return the largest rank of a task's change; None if it is dense, or could be because `refreshes` is not known.

    Args:
        weight: The weight.
        config: The options, with every None resolved.
        r: Number of rows of A.
        refreshes: How often the weight's frame is refreshed in a task, from `refresh_counts`; None if not known.
    """
    (m, n), k = weight.shape, config.rank
    refreshes = refreshes if weight.core else 0
    if refreshes is None:
        return None
    folds = (refreshes + 1) * weight.core  # one at each refresh, one at the task's end
    if (k * folds + r * weight.lora) * (m + n) >= m * n:  # factors this large are replaced by a dense matrix
        return None
    return min(k * refreshes + r * weight.lora, m, n)  # the first fold adds zero


def work(
    weights: Sequence[TrainedWeight], sizes: Mapping[str, int], config: GorpConfig, r: int, tokens: Callable[[str], int]
) -> Iterator[Work]:
    """Yield what GORP adds to a step: projections of A, and in one of T steps the refresh of each frame.

    With N tokens, S n x s, q = k + oversampling and p power steps:

        project A    2 · 4·r·n·s flops                          A's gradient before the step, A after it
        refresh      (3 + 2p) · 2·N·q·(m + n) + 2·m·n·k flops   thin products with X and D, and one fold

    Args:
        weights: The trained weights.
        sizes: Name of a weight -> s.
        config: The options, with every None resolved.
        r: Number of rows of A.
        tokens: Called with the name of a weight; returns N.
    """
    q, sketched, power = config.rank + config.oversampling, config.memory_source == "sketch", config.power_steps or 0
    for weight in weights:
        (m, n), s = weight.shape, sizes[weight.name]
        if weight.lora and config.adapter_rows == "trained":
            yield Work(flops=2 * 4 * r * n * s, moved=2 * 2 * 4 * n * s)
        if products := (2 + 2 * power) * weight.core + (weight.core or sketched):
            count = tokens(weight.name)
            yield Work(
                flops=products * 2 * count * q * (m + n) + 2 * m * n * config.rank * weight.core,
                moved=products * 4 * (count * (m + n) + 2 * n * s) + 2 * 4 * m * n * weight.core,
                every=config.refresh_every,
            )


def refresh_counts(weights: Sequence[TrainedWeight], config: GorpConfig, steps: int | None) -> dict[str, int | None]:
    """Return how often each weight is refreshed in a task of `steps` steps, by name; None if `steps` is not known."""
    if steps is None:
        return dict.fromkeys(weight.name for weight in weights)
    period = min(config.refresh_every, steps)
    watched = {w.name: w.shape for w in weights if w.core or config.memory_source == "sketch"}
    spread = offsets(watched, every=period) if config.staggered else {}
    return {weight.name: len(range(spread.get(weight.name, 0), steps, period)) for weight in weights}


def _sketch_rows(config: GorpConfig, n: int, refreshes: int | None) -> int:
    """Return the rows that a sketch of size l has after k + oversampling rows per refresh; at 2·l it shrinks to l."""
    size, rows = min(config.sketch_size, n), 0
    if refreshes is None:
        return 2 * size
    for _ in range(refreshes):
        rest = config.rank + config.oversampling
        while rest > 0:
            rows, rest = rows + min(rest, size), rest - size
            rows = size if rows >= 2 * size else rows
    return rows
