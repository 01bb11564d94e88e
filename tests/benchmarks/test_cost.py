"""The cost benchmarks measure what they say; nothing here looks at a clock."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = {"layers": 1, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def load():
    """Imports a file of `benchmarks/`, whose files import each other by their plain names."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def tiny(load):
    shapes = load("shapes")
    model = shapes.build_shape("gorp-tiny", **TINY)
    return model, shapes.random_batch(model, rows=2, tokens=8)


def test_a_cut_model_has_less_of_everything(load):
    shapes = load("shapes")
    whole, cut = (shapes.build_shape("gorp-tiny", layers=n, device="cpu", dtype="float32") for n in (None, 1))
    share = 1 / whole.config.num_hidden_layers
    assert cut.config.vocab_size == int(whole.config.vocab_size * share)
    assert len(cut.encoder.block) == len(cut.decoder.block) == 1


def test_twins_share_memory_and_nothing_else(load, tiny):
    model, batch = tiny
    twin = load("shapes").twin(model)
    mine, theirs = model.lm_head.weight, twin.lm_head.weight
    assert theirs is not mine and theirs.data_ptr() == mine.data_ptr() and not theirs.requires_grad
    assert torch.equal(twin(**batch).loss, model(**batch).loss)


@pytest.mark.parametrize("name", ["gorp", "lora", "dora", "osf", "olora", "galore", "apollo", "full"])
def test_every_peer_takes_a_step_that_moves_what_it_trains(load, tiny, name):
    package = {"galore": "galore_torch", "apollo": "apollo_torch"}.get(name)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    model, batch = tiny
    peer = load("peers").PEERS[name](load("shapes").twin(model), batch)
    trained = [p for group in peer.optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in trained]
    for _ in range(2):
        peer.step(batch)
    assert any(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))
    assert all(torch.isfinite(p).all() for p in trained)


def test_gorp_is_measured_at_a_task_that_protects_something(load, tiny):
    model, batch = tiny
    peer = load("peers").gorp(load("shapes").twin(model), batch)
    assert all(peer.method.memory.capacity(name) > 0 for name in peer.method.memory)
    assert len(peer.method.memory) == sum(isinstance(layer, nn.Linear) for layer in model.modules()) - 1  # the head


def test_the_floor_is_a_product_forwards_and_one_for_each_input_that_has_a_layer_below(load):
    class Model(nn.Sequential):
        def forward(self, x):
            return type("Output", (), {"loss": super().forward(x).sum()})()

    model = Model(nn.Linear(6, 4, bias=False), nn.Linear(4, 3, bias=False))
    assert load("speed").floor_flops(model, {"x": torch.randn(5, 6)}) == 2 * 5 * 6 * 4 + 2 * (2 * 5 * 4 * 3)


def test_a_slow_place_in_the_period_is_found(load):
    speed = load("speed")
    times = ([1.0] * 9 + [3.0]) * 4
    assert speed.summarize(times, tokens=10)["slowest"] == 3.0
    assert speed.galore_mean(times, 200) == pytest.approx(1.0 + 2.0 / 200)
    assert speed.ratios(times, [2.0] * 40)["median"] == 0.5


def test_memory_counts_its_parts(load, monkeypatch):
    memory = load("memory")
    monkeypatch.setattr(memory, "PERIOD", 1)
    args = load("records").settle(
        load("records").arguments(""), ["--shape", "gorp-tiny", "--layers", "1", "--rows", "2", "--tokens", "8"]
    )
    of = memory.measure("gorp", args)
    assert of["peak"] > of["held"] >= of["weights"] + of["trained"] + of["optimizer"] + of["frames"] + of["S"]
    assert of["optimizer"] == pytest.approx(2 * of["trained"], rel=0.05)
    json.dumps(of)
