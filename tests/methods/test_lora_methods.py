"""The LoRA baselines: one pair or a sum of pairs, and the upper bound that sees all tasks at once."""

import pytest
import torch
from transformers import TrainerCallback

from gorp.layers.lora import LoraSettings
from gorp.layers.targets import resolve
from gorp.methods import METHODS
from gorp.methods.base import TaskContext
from tests.runs import assert_equal, fresh, tiny, train


class Pairs(TrainerCallback):
    """s B A of every weight at the end of each task, multiplied out in float64."""

    def __init__(self, method):
        self.method, self.products = method, []

    def on_train_end(self, args, state, control, **kwargs):
        made = {n: p.scale * p.up.detach().double() @ p.down.detach().double() for n, p in self.method.pairs.items()}
        self.products.append(made)


def two_tasks(name, folder):
    model = tiny("llama")
    method = fresh(name, model)
    pairs = Pairs(method)
    for task in (1, 2):
        train(model, method, task, folder, callbacks=(pairs,))
    return method, pairs.products


@pytest.mark.parametrize("name", ["sequential_lora", "ewc"])
def test_one_pair_for_all_tasks_is_the_whole_delta(name, tmp_path):
    method, (first, second) = two_tasks(name, tmp_path)
    assert method.deltas.keys() == second.keys()
    for key, delta in method.deltas.items():
        torch.testing.assert_close(delta.dense().double(), second[key], rtol=1e-5, atol=1e-7)
        assert delta.rank == 8 or delta.is_dense
        assert (second[key] - first[key]).norm() > 0


@pytest.mark.parametrize("name", ["incremental_lora", "olora", "multi_task"])
def test_a_pair_for_each_task_makes_their_sum(name, tmp_path):
    method, (first, second) = two_tasks(name, tmp_path)
    for key, delta in method.deltas.items():
        torch.testing.assert_close(delta.dense().double(), first[key] + second[key], rtol=1e-4, atol=1e-6)


def test_one_pair_goes_on_from_where_it_stood(tmp_path):
    model = tiny("llama")
    method = fresh("sequential_lora", model)
    pairs = Pairs(method)
    train(model, method, 1, tmp_path, callbacks=(pairs,))
    train(model, method, 2, tmp_path, callbacks=(pairs,), learning_rate=0.0)
    for key, product in pairs.products[0].items():
        assert torch.equal(pairs.products[1][key], product)


def test_only_multi_task_is_joint():
    assert [name for name, method in METHODS.items() if method.joint] == ["multi_task"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sequential_full_of_a_narrow_model_trains_in_float32(dtype, tmp_path):
    """Bit for bit as a float32 model of the same values; at this rate hardly an entry would move in bfloat16."""
    ends = []
    for widened in (False, True):
        model = tiny("llama", dtype=dtype)
        if widened:
            for p in model.parameters():
                p.data = p.data.float()
        method = fresh("sequential_full", model)
        for task in (1, 2):
            options = {"learning_rate": 1e-5, "bf16": False, "num_train_epochs": 0.5}
            train(model, method, task, tmp_path, **options)
        ends.append({name: delta.dense() for name, delta in method.deltas.items()})
        assert {p.dtype for p in model.parameters()} == {torch.float32 if widened else dtype}
        for name, delta in ends[-1].items():
            base = tiny("llama", dtype=dtype).get_parameter(name)
            assert torch.equal(model.get_parameter(name), (base.float() + delta).to(model.dtype))
    assert_equal(ends[0], ends[1])
    entries = torch.cat([delta.flatten() for delta in ends[0].values()])
    assert (entries != 0).double().mean() > 0.99


def test_sequential_full_of_a_bfloat16_model_runs_under_autocast(tmp_path):
    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            self.seen = args.bf16, {p.dtype for p in model.parameters()}

    model, look = tiny("llama", dtype=torch.bfloat16), Look()
    train(model, fresh("sequential_full", model), 1, tmp_path, callbacks=(look,), num_train_epochs=0.25)
    assert look.seen == (True, {torch.float32})


def test_sequential_full_decays_neither_norms_nor_biases(tmp_path):
    model = tiny("t5")
    method = fresh("sequential_full", model)
    context = TaskContext(name="t", index=1, seed=0, num_steps=1, batches=lambda size, limit: iter(()))
    method.begin_task(model, context)
    decayed, plain = method.parameter_groups(model, 1e-3)
    names = {p: name for name, p in model.named_parameters()}
    assert "weight_decay" not in decayed and plain["weight_decay"] == 0.0
    assert {names[p] for p in plain["params"]} == {n for n in names.values() if "norm" in n or "bias" in n}
    assert set(names) == {*decayed["params"], *plain["params"]}


def test_sequential_full_trains_every_parameter(tmp_path):
    model, pristine = tiny("llama"), tiny("llama")
    method = fresh("sequential_full", model)
    train(model, method, 1, tmp_path)
    assert set(method.deltas) == {name for name, _ in pristine.named_parameters()}
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), pristine.parameters(), strict=True))


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_adapters_are_on_all_linear_layers_by_default_and_in_paper_mode_on_the_preset(family):
    model, default = tiny(family), LoraSettings()
    for name, method in METHODS.items():
        if method.uses_lora:
            assert set(fresh(name, model, lora=default).choose(model)) == set(
                resolve(model, "all-linear", role="lora")
            ), name
    preset = [resolve(model, "auto", role=role) for role in ("lora", "full")]
    paper = fresh("gorp", model, mode="paper", lora=default)
    assert paper.choose(model) == [layer for layers in preset for layer in layers]
    chosen = fresh("gorp", model, mode="paper", lora=LoraSettings(target_modules="all-linear")).choose(model)
    assert set(chosen) == set(resolve(model, "all-linear", role="lora"))
