"""Working weights are computed from W₀ and deltas, independent of their current values."""

import pytest
import torch
from torch import nn

from gorp.errors import ModelError
from gorp.weights.base import BLOCK, BaseWeights
from gorp.weights.delta import WeightDelta


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).requires_grad_(False)


def factored(shape, scale=1.0):
    delta = WeightDelta(shape)
    delta.append(scale * torch.randn(shape[0], 1), torch.randn(shape[1], 1))
    return delta


def test_loading_twice_gives_the_same_bits_as_loading_once(model):
    weights, delta = BaseWeights(model), factored(torch.Size([5, 6]))
    expected = model[0].weight + delta.dense()
    weights.load({"0.weight": delta})
    once = model[0].weight.clone()
    # Some processors round once per multiply-add, whereas W + delta.dense() rounds twice.
    torch.testing.assert_close(once, expected, rtol=0, atol=1e-6)
    weights.load({"0.weight": delta})
    assert torch.equal(model[0].weight, once)


def test_a_weight_without_a_delta_is_reset_to_its_original_bits(model):
    weights, before = BaseWeights(model), model[0].weight.clone()
    weights.load({"0.weight": factored(torch.Size([5, 6]), 1e6)})
    weights.load({})
    assert torch.equal(model[0].weight, before)


def test_several_deltas_are_summed_before_rounding(model):
    model.bfloat16()
    weights, base = BaseWeights(model), model[0].weight.clone()
    parts = [WeightDelta.of(torch.full((5, 6), 1e-3)) for _ in range(8)]
    weights.set("0.weight", parts)
    assert torch.equal(model[0].weight, (base.float() + 8e-3).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_after_many_folds_the_weight_is_w0_plus_the_delta(model, dtype):
    model.to(dtype)
    weights, delta = BaseWeights(model), WeightDelta(torch.Size([5, 6]))
    base = weights.base("0.weight").clone()
    for _ in range(200):
        left, right = 1e-4 * torch.ones(5, 1, dtype=dtype), torch.ones(6, 1, dtype=dtype)
        delta.append(left, right)
        weights.fold("0.weight", left, right, [delta])
    rounding = {torch.float32: 1e-5, torch.float64: 1e-9, torch.bfloat16: 0}[dtype]
    expected = (base.to(delta.dense().dtype) + delta.dense()).to(dtype)
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=0, atol=rounding)
    assert not torch.equal(model[0].weight, base)


def test_summing_in_blocks_gives_the_same_weight(model, monkeypatch):
    weights, delta = BaseWeights(model), factored(torch.Size([5, 6]))
    weights.load({"0.weight": delta})
    whole = model[0].weight.clone()
    monkeypatch.setitem(BLOCK, "cpu", 7)
    weights.load({"0.weight": delta})
    torch.testing.assert_close(model[0].weight, whole)


def test_loading_the_difference_restores_the_trained_weight(model):
    weights = BaseWeights(model)
    weights.base("1.bias")
    model[1].bias.add_(0.25)
    trained = model[1].bias.clone()
    delta = weights.difference("1.bias")
    weights.load({})
    weights.load({"1.bias": delta})
    torch.testing.assert_close(model[1].bias, trained, rtol=0, atol=1e-7)


def test_the_error_for_an_unknown_name_suggests_the_nearest_one(model):
    with pytest.raises(
        ModelError, match=r"0\.weigth: this base model has no such parameter\. Did you mean `0\.weight`"
    ):
        BaseWeights(model).load({"0.weigth": factored(torch.Size([5, 6]))})


def test_raises_for_a_delta_of_another_shape(model):
    with pytest.raises(ModelError, match=r"0\.weight: the delta has shape \(4, 6\), the base model's weight \(5, 6\)"):
        BaseWeights(model).load({"0.weight": factored(torch.Size([4, 6]))})
