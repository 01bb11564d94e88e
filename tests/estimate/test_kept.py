"""Bytes kept between tasks: predicted from shapes, held to what a method's state really takes."""

import pytest
import torch

from gorp.core.state import footprint
from gorp.estimate.kept import gorp_weights, kept_bytes, readings_of
from gorp.layers.lora import LoraSettings
from gorp.methods.base import TaskContext
from gorp.methods.gorp import Gorp, GorpConfig
from tests.models_small import tiny_llama, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


ALL_ENERGY = 1 - 1e-9
"""S then takes every direction that a task has."""


def learn(method, model, *, tasks, steps):
    """`tasks` tasks of random rows, through the seams."""
    method.setup(model)
    for index in range(1, tasks + 1):
        rows = torch.randint(3, model.config.vocab_size, (16, 12))
        batches = [{"input_ids": rows, "labels": rows}]
        task = TaskContext(
            name=str(index), index=index, seed=0, num_steps=steps, batches=lambda *_, rows=batches: iter(rows)
        )
        method.begin_task(model, task)
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


@pytest.mark.parametrize(("full", "lora"), [("auto", "auto"), ("all-linear", "auto"), ("none", "all-linear")])
@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("source", ["moment", "sketch"])
def test_kept_is_exact_while_tasks_bring_all_they_can(full, lora, tasks, source):
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
    method, model = Gorp(config, LoraSettings(r=2, target_modules=lora)), tiny_llama(llama_tokenizer())
    weights = gorp_weights(model, method)
    learn(method, model, tasks=tasks, steps=7)
    assert kept_bytes(weights, config, 2, tasks=tasks, steps=7) == footprint(method.state_dict())


@pytest.mark.parametrize("source", ["inputs", "sketch"])
def test_kept_is_exact_at_the_budget_and_grows_by_readings_alone(source):
    config = GorpConfig(
        full_modules="all-linear",
        rank=4,
        refresh_every=2,
        memory_source=source,
        threshold=1e-6,
        energy=ALL_ENERGY,
        budget=0.2,
    )
    method, model = Gorp(config, LoraSettings(r=4, target_modules="all-linear")), tiny_t5(t5_tokenizer())
    weights = gorp_weights(model, method)
    learn(method, model, tasks=3, steps=8)
    after_three, each = kept_bytes(weights, config, 4, tasks=3, steps=8), readings_of(weights, config)
    assert after_three == footprint(method.state_dict())
    assert (each > 0) == (source == "inputs")
    assert kept_bytes(weights, config, 4, tasks=100, steps=8) == after_three + 97 * each


def test_kept_is_a_bound_for_the_defaults():
    config = GorpConfig()
    method, model = Gorp(config, LoraSettings()), tiny_t5(t5_tokenizer())
    weights = gorp_weights(model, method)
    learn(method, model, tasks=2, steps=12)
    dense = kept_bytes(weights, config, 8, tasks=2, steps=None)
    assert footprint(method.state_dict()) <= kept_bytes(weights, config, 8, tasks=2, steps=12) <= dense


def test_unknown_steps_count_as_dense():
    config = GorpConfig()
    weights = gorp_weights(tiny_t5(t5_tokenizer()), Gorp(config))
    assert kept_bytes(weights, config, 8, tasks=1, steps=None) >= kept_bytes(weights, config, 8, tasks=1, steps=5)
