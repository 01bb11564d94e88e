"""Folds into a bfloat16 weight on a GPU: each is smaller than the weight's rounding, and none is lost."""

import pytest
import torch
from torch import nn

from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta


@pytest.mark.parametrize("folds", [1, 40])
def test_a_weight_is_its_base_and_all_folds_rounded_once(folds, either):
    m, n, k = 160, 96, 4
    model = nn.Sequential(nn.Linear(n, m, bias=False)).to(either, torch.bfloat16).requires_grad_(False)
    weights, name = BaseWeights(model), "0.weight"
    base = weights.base(name)
    assert base.device.type == "cpu"
    earlier = WeightDelta.of(1e-3 * torch.randn(m, n))  # of a finished task: dense, in main memory
    left, right = torch.randn(m, k, device=either), 1e-5 * torch.randn(n, k, device=either)
    change, wrong = WeightDelta(torch.Size([m, n])), model[0].weight.detach().clone()
    for _ in range(folds):
        change.append(left, right)
        weights.fold(name, left, right, [earlier, change])
        wrong += (left @ right.mT).to(wrong)
    fold = (left.double() @ right.double().mT).cpu()
    exact = base.double() + earlier.dense().double() + folds * fold
    error = (model[0].weight.cpu().double() - exact).abs()
    assert (error <= 2**-8 * exact.abs() * (1 + 1e-3)).all()  # half a unit in the last of 8 binary digits
    moved = (wrong.cpu().double() - base.double()).norm()
    assert moved < 0.5 * (folds * fold).norm() or folds == 1  # what adding in place would have left of them


def test_a_float32_weight_takes_a_fold_in_place_and_goes_back_to_its_base(either):
    model = nn.Sequential(nn.Linear(96, 160, bias=False)).to(either).requires_grad_(False)
    weights, name, before = BaseWeights(model), "0.weight", model[0].weight.detach().clone()
    weights.base(name)
    left, right = torch.randn(160, 4, device=either), torch.randn(96, 4, device=either)
    weights.fold(name, left, right, [])
    torch.testing.assert_close(model[0].weight, before + left @ right.mT)
    weights.load({})
    assert torch.equal(model[0].weight, before)
