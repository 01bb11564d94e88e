"""The LoRA baselines: one pair or a sum of pairs, and the upper bound that sees all tasks at once."""

import pytest
import torch
from transformers import TrainerCallback

from gorp.methods import METHODS
from tests.runs import fresh, tiny, train


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


def test_sequential_full_trains_every_parameter(tmp_path):
    model, pristine = tiny("llama"), tiny("llama")
    method = fresh("sequential_full", model)
    train(model, method, 1, tmp_path)
    assert set(method.deltas) == {name for name, _ in pristine.named_parameters()}
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), pristine.parameters(), strict=True))
