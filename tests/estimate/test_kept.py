"""State of a method, predicted from shapes (`Method.assume_learned`), held to what real tasks leave."""

import pytest
import torch

from gorp.core.state import footprint
from gorp.errors import ConfigError
from gorp.estimate import Ledger
from gorp.layers.lora import LoraSettings
from gorp.methods import METHODS, build_method
from gorp.methods.base import TaskContext
from gorp.methods.gorp import GorpConfig
from gorp.methods.protected_full import ProtectedFullConfig
from gorp.protection.coverage import PROJECTIONS
from tests.models_small import tiny_llama, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


ALL_ENERGY = 1 - 1e-9
"""S then takes every direction that a task has."""


def small(family):
    return tiny_t5(t5_tokenizer()) if family == "t5" else tiny_llama(llama_tokenizer())


def context(model, *, index, steps):
    """A task of 16 random rows, for `begin_task`, and for what the method reads of it."""
    rows = torch.randint(3, model.config.vocab_size, (16, 12))

    def batches(size, limit):
        for part in rows[:limit].split(size):
            yield {"input_ids": part, "labels": part}

    return TaskContext(name=str(index), index=index, seed=0, num_steps=steps, num_tasks=3, batches=batches)


def learned(name, config=None, lora=None, *, family="llama", tasks, steps):
    """A method after `tasks` real tasks."""
    model, method = small(family), build_method(name, config, lora)
    method.setup(model)
    for index in range(1, tasks + 1):
        task = context(model, index=index, steps=steps)
        method.begin_task(model, task)
        method.begin_training(model, task)
        optimizer = torch.optim.AdamW(method.parameter_groups(model, 1e-2), lr=1e-2)
        for _ in range(steps):
            ids = torch.randint(3, model.config.vocab_size, (4, 12))
            model(input_ids=ids, labels=ids).loss.backward()
            method.edit_gradients(model, optimizer)
            optimizer.step()
            with torch.no_grad():
                method.after_step(model, optimizer)
            optimizer.zero_grad()
        method.end_task(model, optimizer, task)
    return method


def assumed(name, config=None, lora=None, *, family="llama", tasks, steps):
    """The same method, as it is assumed to be, and its model without data."""
    model, method = small(family).to("meta"), build_method(name, config, lora)
    model.tie_weights()  # moving to the meta device copies each parameter
    method.setup(model)
    method.assume_learned(model, tasks=tasks, steps=steps)
    return method, model


def shapes(state):
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in state.items()}


def test_every_method_assumes_at_least_the_bytes_that_real_tasks_leave():
    for name in METHODS.keys() - {"replay"}:
        method, _ = assumed(name, tasks=2, steps=4)
        assert footprint(learned(name, tasks=2, steps=4).state_dict()) <= footprint(method.state_dict()), name


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"replay", "gorp", "protected_full"}))
def test_where_nothing_depends_on_the_data_the_assumed_state_has_the_real_keys_and_shapes(name):
    real, (method, _) = learned(name, tasks=2, steps=2), assumed(name, tasks=2, steps=2)
    assert shapes(method.state_dict()) == shapes(real.state_dict())


def test_replay_is_refused_because_its_state_depends_on_the_rows():
    with pytest.raises(ConfigError, match="replay cannot be estimated"):
        assumed("replay", tasks=1, steps=2)


@pytest.mark.parametrize(("full", "lora"), [("auto", "auto"), ("all-linear", "auto"), ("none", "all-linear")])
@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("source", ["moment", "sketch"])
def test_gorp_is_exact_while_tasks_bring_all_directions_they_can(full, lora, tasks, source):
    config = GorpConfig(
        full_modules=full,
        rank=2,
        refresh_every=3,
        oversampling=2,
        memory_source=source,
        adapter_rows="trained",
        energy=ALL_ENERGY,
        budget=1.0,
    )
    settings = LoraSettings(r=2, target_modules=lora)
    real = learned("gorp", config, settings, tasks=tasks, steps=7)
    method, _ = assumed("gorp", config, settings, tasks=tasks, steps=7)
    assert footprint(method.state_dict()) == footprint(real.state_dict())


@pytest.mark.parametrize("side", ["input", "rank"])
@pytest.mark.parametrize("full", ["auto", "none"])
def test_paper_mode_is_exact_while_tasks_bring_all_directions_they_can(side, full):
    config = GorpConfig(mode="paper", rank=2, refresh_every=3, full_modules=full, adapter_side=side, energy=ALL_ENERGY)
    settings = LoraSettings(r=2, target_modules="auto")
    real = learned("gorp", config, settings, tasks=1, steps=7)
    method, _ = assumed("gorp", config, settings, tasks=1, steps=7)
    assert shapes(method.state_dict()) == shapes(real.state_dict())


@pytest.mark.parametrize("source", ["inputs", "sketch"])
def test_gorp_is_exact_at_the_budget_and_then_grows_by_input_summaries_alone(source):
    config = GorpConfig(
        full_modules="all-linear",
        rank=4,
        refresh_every=2,
        memory_source=source,
        threshold=1e-6,
        energy=ALL_ENERGY,
        budget=0.2,
    )
    settings = LoraSettings(r=4, target_modules="all-linear")
    real = learned("gorp", config, settings, family="t5", tasks=3, steps=8)
    (three, _), (hundred, _) = (
        assumed("gorp", config, settings, family="t5", tasks=tasks, steps=8) for tasks in (3, 100)
    )
    after_three = footprint(three.state_dict())
    assert after_three == footprint(real.state_dict())
    summaries = sum(2 * PROJECTIONS * sum(delta.shape) + 16 for delta in three.deltas.values())  # R, Y, two float64
    assert footprint(hundred.state_dict()) == after_three + 97 * summaries * (source == "inputs")


def test_steps_that_are_not_known_count_as_dense_deltas():
    (unknown, _), (known, _) = (
        assumed("gorp", None, LoraSettings(target_modules="auto"), tasks=1, steps=steps) for steps in (None, 5)
    )
    assert footprint(unknown.state_dict()) > footprint(known.state_dict())


def begun(budget):
    """`protected_full` in its second task, on real tensors, S as large as it is assumed to be; and on shapes."""
    config = ProtectedFullConfig(budget=budget)
    method, model = assumed("protected_full", config, tasks=1, steps=1)
    bases = {name: torch.eye(len(basis))[:, : basis.shape[1]] for name, basis in method.space.bases().items()}
    method.begin_task(model, context(model, index=2, steps=1))
    method.begin_training(model, context(model, index=2, steps=1))

    real, real_model = build_method("protected_full", config), small("llama")
    real.setup(real_model)
    real.memory.load_state_dict(bases | {f"{name}::energy": torch.ones(s.shape[1]) for name, s in bases.items()})
    real.begin_task(real_model, context(real_model, index=2, steps=1))
    real.begin_training(real_model, context(real_model, index=2, steps=1))
    return method, real, real_model


@pytest.mark.parametrize("budget", [0.5, 1.0])
def test_what_protected_full_holds_while_a_task_runs_is_exact(budget):
    method, real, _ = begun(budget)
    assert sorted(t.shape for t in method.resident_tensors()) == sorted(t.shape for t in real.resident_tensors())
    assert all(0 < s.shape[1] < len(s) for s in method.space.bases().values())  # at s = n nothing would be trained


def test_protected_full_keeps_what_is_assumed_once_s_is_at_the_budget():
    _, real, model = begun(0.5)
    optimizer = torch.optim.SGD(real.parameter_groups(model, 0.1), lr=0.1)
    real.end_task(model, optimizer, context(model, index=2, steps=1))
    method, _ = assumed("protected_full", ProtectedFullConfig(budget=0.5), tasks=1, steps=1)  # it read one task's rows
    assert footprint(real.state_dict()) == footprint(method.state_dict())


def test_the_products_of_a_step_of_protected_full_are_counted():
    method, real, model = begun(0.5)
    optimizer = torch.optim.SGD(real.parameter_groups(model, 0.1), lr=0.1)
    ids = torch.randint(3, model.config.vocab_size, (4, 12))
    model(input_ids=ids, labels=ids).loss.backward()
    with Ledger() as ledger, torch.no_grad():
        real.edit_gradients(model, optimizer)
        real.after_step(model, optimizer)
    assert sum(work.flops for work in method.step_work(lambda name: 48)) == ledger.flops > 0
