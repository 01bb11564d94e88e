"""The largest state that finished tasks leave in GORP, and the products of its own in a step, from shapes and settings.

Between tasks a weight of m x n leaves 4·s·(n + 1) bytes of S and its energies, and 4·min(R·(m + n), m·n) of delta. How
many directions s the data has, and the rank R of a task's change, are not known before: both are taken as large as a
task can make them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from gorp.core.memory import room
from gorp.layers.names import weight_name
from gorp.methods.base import Work
from gorp.methods.gorp.config import GorpConfig
from gorp.weights.base import BaseWeights


@dataclass(frozen=True, kw_only=True)
class TrainedWeight:
    """A weight that GORP trains, m x n."""

    name: str
    """In the base model's `state_dict`."""
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
    """Return for each basis in S its dimension and the most directions that `tasks` tasks can bring, in the budget.

    A task brings the rows of its first moments, r of A and k of C; or those of its sketch; or as many directions as its
    inputs have, at most n.

    Args:
        weights: Of the model, in the order of `trained_weights`.
        config: Without open fields.
        r: Rows of A.
        tasks: Finished tasks.
        steps: Of each task; None if not known.
    """
    brought: dict[str, tuple[int, int]] = {}
    paper, source = config.mode == "paper", config.memory_source
    for place, weight in enumerate(weights):
        name, (_, n), k = weight.name, weight.shape, config.rank
        if source == "inputs":
            brought[name] = (n, n)
            continue
        if paper and weight.core:
            brought[f"{name}::core"] = (k, k)
        if paper and weight.lora and config.adapter_side == "rank":
            brought[f"{name}::rank"] = (r, r)
        elif source == "sketch" and (weight.lora or not paper):
            brought[name] = (n, _sketch_rows(config, n, _refreshes(config, place, steps)))
        elif rows := r * weight.lora + k * (weight.core and not paper):
            brought[name] = (n, rows)
    budget = config.budget or 1.0
    return {key: (n, min(room(n, budget), tasks * min(rows, n))) for key, (n, rows) in brought.items()}


def delta_rank(weight: TrainedWeight, config: GorpConfig, r: int, *, place: int, steps: int | None) -> int | None:
    """Return the most columns of a task's change; None if it is dense, or may be because `steps` is not known.

    Args:
        weight: Its `place` in the order of `trained_weights` says when its frame is refreshed.
        config: Without open fields.
        r: Rows of A.
        place: From 0.
        steps: Of a task.
    """
    (m, n), k = weight.shape, config.rank
    refreshes = _refreshes(config, place, steps) if weight.core else 0
    if refreshes is None:
        return None
    folds = (refreshes + 1) * weight.core  # one at each refresh, one at the task's end
    if (k * folds + r * weight.lora) * (m + n) >= m * n:  # multiplied out while the task runs
        return None
    return min(k * refreshes + r * weight.lora, m, n)  # the first fold adds zero


def work(
    weights: Sequence[TrainedWeight], sizes: Mapping[str, int], config: GorpConfig, r: int, tokens: Callable[[str], int]
) -> Iterator[Work]:
    """Yield what GORP adds to a step: projections of A, and the refresh of each frame in one step of T.

    With N tokens, S n x s, q = k + oversampling and p power steps:

        project A    2 · 4·r·n·s flops                          A's gradient before the step, A after it
        refresh      (3 + 2p) · 2·N·q·(m + n) + 2·m·n·k flops   thin products with X and D, and one fold

    Args:
        weights: The trained ones.
        sizes: s of each, by name.
        config: Without open fields.
        r: Rows of A.
        tokens: N of each weight, by name.
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


def _refreshes(config: GorpConfig, place: int, steps: int | None) -> int | None:
    """How often it is the turn of the weight at `place` in a task of `steps` steps; None if that is not known."""
    if steps is None:
        return None
    period = min(config.refresh_every, steps)
    return len(range(place % period if config.staggered else 0, steps, period))


def _sketch_rows(config: GorpConfig, n: int, refreshes: int | None) -> int:
    """Rows of a sketch of size l after k + oversampling rows a refresh: from 2·l on it shrinks to l."""
    size, rows = min(config.sketch_size, n), 0
    if refreshes is None:
        return 2 * size
    for _ in range(refreshes):
        rest = config.rank + config.oversampling
        while rest > 0:
            rows, rest = rows + min(rest, size), rest - size
            rows = size if rows >= 2 * size else rows
    return rows
