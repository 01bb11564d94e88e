"""Bytes that gorp carries from task to task: S and its energies, and the deltas, from shapes and settings alone.

Between tasks a weight of m x n leaves  4·s·(n + 1)  bytes of S, and of delta  4·min(R·(m + n), m·n). How many
directions s the energy rule takes depends on the gradients, so what is predicted is the most: all that a task can
bring; at the budget and with dense deltas it stops growing. Each task that `memory_source: inputs` reads leaves
2·k·(m + n) + 16  bytes of its own for each weight (`gorp.protection.coverage`), which go on being added.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from gorp.core.memory import room
from gorp.layers.low_rank import linear_of
from gorp.layers.names import weight_name
from gorp.layers.targets import resolve
from gorp.methods.gorp import Gorp, GorpConfig
from gorp.protection.coverage import reading_bytes


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One weight that gorp trains."""

    name: str
    """In the base model's `state_dict`."""
    m: int
    """Outputs."""
    n: int
    """Inputs."""
    core: bool
    """Whether it has a core C, k x k."""
    lora: bool
    """Whether it has LoRA factors."""


def gorp_weights(model: nn.Module, method: Gorp) -> list[Weight]:
    """The weights that `method` would train in `model`, in the model's order, each with its treatment."""
    cores = set(resolve(model, method.config.full_modules, role="full"))
    loras = set(resolve(model, method.lora.target_modules, role="lora"))
    found = []
    for name, layer in model.named_modules():
        if name in cores | loras:
            m, n = linear_of(layer).weight.shape
            found.append(Weight(name=weight_name(name), m=m, n=n, core=name in cores, lora=name in loras))
    return found


def kept_bytes(weights: Sequence[Weight], config: GorpConfig, r: int, *, tasks: int, steps: int | None) -> int:
    """The most bytes that gorp's `state_dict` holds after `tasks` tasks of `steps` optimizer steps each.

    Exact where every task brings as many directions as it can, and its frames differ.

    Args:
        weights: The trained ones, in the model's order.
        config: Strict mode.
        r: Rows of the LoRA factors.
        tasks: Finished tasks.
        steps: Of each; None where it is not known: deltas of cores then count as dense.
    """
    config = config.resolved()
    total = 8 + tasks * readings_of(weights, config)  # 8: the step counter
    for weight, refreshes in refreshes_of(weights, config, steps):
        s = directions(weight, config, r, refreshes=refreshes, tasks=tasks)
        total += 4 * s * (weight.n + 1) + delta_bytes(weight, config, r, refreshes=refreshes, tasks=tasks)
    return total


def readings_of(weights: Sequence[Weight], config: GorpConfig) -> int:
    """Bytes that each task leaves to tell later how far its outputs have moved."""
    read = config.resolved().memory_source == "inputs"
    return sum(reading_bytes(w.m, w.n) for w in weights) if read else 0


def refreshes_of(
    weights: Sequence[Weight], config: GorpConfig, steps: int | None
) -> Iterator[tuple[Weight, int | None]]:
    """Each weight with the number of times in a task of `steps` steps that it is its turn; None where that is unknown.

    Turns go round among the weights with cores, then those without.
    """
    config = config.resolved()
    for place, weight in enumerate(sorted(weights, key=lambda w: not w.core)):
        if steps is None:
            yield weight, None
        else:
            period = min(config.refresh_every, steps)
            yield weight, len(range(place % period if config.staggered else 0, steps, period))


def cap(n: int, config: GorpConfig) -> int:
    """The most directions of R^n that the budget allows."""
    return room(n, config.resolved().budget or 1.0)


def directions(weight: Weight, config: GorpConfig, r: int, *, refreshes: int | None, tasks: int) -> int:
    """s: the most directions that `tasks` tasks can bring, within the budget.

    A task brings the rows of its first moments, r of A and k of C; or those of its sketch; or as many directions as its
    inputs have, which nobody knows before, and the budget allows.
    """
    brought = r * weight.lora + config.rank * weight.core
    source = config.resolved().memory_source
    if source == "sketch":
        brought = _sketch_rows(config, weight.n, refreshes)
    elif source == "inputs":
        brought = weight.n
    return min(cap(weight.n, config), tasks * min(brought, weight.n))


def delta_bytes(weight: Weight, config: GorpConfig, r: int, *, refreshes: int | None, tasks: int) -> int:
    """The delta, float32: factors of all tasks side by side while they are smaller than the matrix.

    Args:
        weight: Whose.
        config: Of the method.
        r: Rows of the LoRA factors.
        refreshes: Of the weight's frame in each task; None if unknown.
        tasks: Finished tasks.
    """
    m, n = weight.m, weight.n
    if weight.core and refreshes is None:
        return 4 * m * n
    refreshes = (refreshes or 0) * weight.core
    columns = config.rank * (refreshes + 1) * weight.core + r * weight.lora  # one fold a refresh, one at the end
    if columns * (m + n) >= m * n:  # multiplied out during the task
        return 4 * m * n
    rank = min(config.rank * refreshes + r * weight.lora, m, n)  # the first fold is of zero
    return 4 * min(tasks * rank * (m + n), m * n)


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
