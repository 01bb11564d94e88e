"""Whatever options strict mode accepts, a later task's change does not act on what S holds."""

import itertools
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch

from gorp.errors import ConfigError
from gorp.layers.lora import LoraSettings
from gorp.methods.base import TaskContext
from gorp.methods.gorp import Gorp, GorpConfig
from tests.runs import tiny


NUMBERS: dict[str, tuple[Any, ...]] = {
    "target_modules": ("all-linear", "none"),
    "full_modules": ("all-linear", "none"),
    "rank": (4, 32),  # the second is wider than some layers
    "refresh_every": (2, 50),
    "core_learning_rate": (None, 0.05),
    "scale": (1.0, 10.0),
    "energy": (None, 0.5),
    "budget": (None, 1.0),
    "sketch_size": (128, 2),
    "memory_rows": (256, 2),
    "threshold": (0.3, 3.0),
    "oversampling": (8, 0),
    "power_steps": (None, 2),
    "recompress": (1e-6, 0.3),
}
"""The usual value and an extreme one of every option that is not a choice of words, and which layers have adapters."""


def choices() -> dict[str, tuple[Any, ...]]:
    """Every option with the values to try: all words of a choice, both of a switch, two of everything else."""
    found = {}
    for name, hint in get_type_hints(GorpConfig).items():
        if name in NUMBERS or name == "mode":
            continue
        parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        words = tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))
        found[name] = words or (True, False)
    return found | NUMBERS


def accepted(options: dict[str, Any]) -> GorpConfig | None:
    """The configuration, unless it is refused or trains nothing."""
    if options.get("target_modules") == options.get("full_modules") == "none":
        return None
    try:
        return GorpConfig(mode="strict", **{k: v for k, v in options.items() if k != "target_modules"})
    except ConfigError:
        return None


def pairs_of_values() -> list[dict[str, Any]]:
    """Configurations in which every two values of two options that strict mode accepts together occur together."""
    options = choices()
    missing = {
        ((a, x), (b, y)): None
        for a, b in itertools.combinations(options, 2)
        for x, y in itertools.product(options[a], options[b])
        if accepted({a: x, b: y})
    }
    made = []
    while missing:
        chosen: dict[str, Any] = dict(next(iter(missing)))
        for name in [name for name in options if name not in chosen]:
            allowed = [value for value in options[name] if accepted(chosen | {name: value})]
            chosen[name] = max(allowed, key=lambda v, n=name: sum(p in missing for p in covered(chosen | {n: v})))
        for pair in covered(chosen):
            missing.pop(pair, None)
        made.append(chosen)
    return made


def covered(chosen: dict[str, Any]) -> list[tuple[tuple[str, Any], ...]]:
    """All pairs of options and their values, each in the order of `choices`."""
    return list(itertools.combinations([(name, chosen[name]) for name in choices() if name in chosen], 2))


def learn(method: Gorp, model: torch.nn.Module, index: int, steps: int = 6) -> None:
    """One task of random rows, through the method hooks, with AdamW and much weight decay."""
    generator = torch.Generator().manual_seed(index)

    def batches(size: int, limit: int | None) -> Iterator[dict[str, torch.Tensor]]:
        drawn = torch.Generator().manual_seed(100 + index)
        ids = torch.randint(5, 60, (min(4, limit or 4), 8), generator=drawn) + 40 * index
        yield {"input_ids": ids, "labels": ids}

    task = TaskContext(name=str(index), index=index, seed=0, num_steps=steps, batches=batches)
    method.begin_task(model, task)
    method.begin_training(model, task)
    optimizer = torch.optim.AdamW(method.parameter_groups(model, 5e-3), lr=5e-3, weight_decay=0.5)
    for _ in range(steps):
        ids = torch.randint(5, 60, (4, 8), generator=generator) + 40 * index
        model(input_ids=ids, labels=ids).loss.backward()
        method.edit_gradients(model, optimizer)
        optimizer.step()
        with torch.no_grad():
            method.after_step(model, optimizer)
        optimizer.zero_grad()
    method.end_task(model, optimizer, task)


COMBINATIONS = pairs_of_values()


def test_every_value_that_strict_mode_knows_is_tried():
    tried = {item for chosen in COMBINATIONS for item in chosen.items()}
    known = {(name, value) for name, values in choices().items() for value in values}
    refused = {("projection", "gradient"), ("adapter", "shared"), ("adapter_side", "rank")}
    assert known - tried == refused
    assert all(accepted({name: value}) is None for name, value in refused)


@pytest.mark.parametrize("number", range(len(COMBINATIONS)))
def test_strict_mode_leaves_s_alone_under_every_pair_of_options(number):
    options, model = COMBINATIONS[number], tiny("llama")
    method = Gorp(accepted(options), LoraSettings(r=4, target_modules=options["target_modules"]))
    method.setup(model)
    learn(method, model, 1)
    protected = method.memory_tensors()
    before = {name: delta.dense().double() for name, delta in method.deltas.items()}
    learn(method, model, 2)
    moved = 0
    for name, basis in protected.items():
        change = method.deltas[name].dense().double() - before[name]
        assert torch.isfinite(change).all() and basis.shape[1] > 0
        moved += bool(change.norm() > 0)
        assert (change @ basis.double()).norm() <= 1e-5 * change.norm(), name
    assert moved > len(protected) / 2
