"""The wrapped layer computes (W + U C Vᵀ) x, and a watch records X and D without changing any result."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gorp.core.frame import Frame
from gorp.layers.lora import LoraSettings, add_lora
from gorp.layers.low_rank import LowRankUpdate, linear_of, unwrap, wrap
from gorp.layers.watch import PairWatch
from tests.matrices import basis


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double().requires_grad_(False)


def frame(m, n, k):
    return Frame(left=basis(m, k), right=basis(n, k))


def term_by_term(layer, x):
    """Slow reference: the output of the inner layer plus U (C (Vᵀ x))."""
    y = layer.inner(x)
    inside = (x @ layer.right.to(x.dtype)).to(layer.core.dtype)  # Vᵀ x: (..., n) @ (n, k)
    return y + (inside @ layer.core.mT).to(y.dtype) @ layer.left.mT.to(y.dtype)  # (..., k) @ (k, k) @ (k, m)


def test_a_new_layer_has_the_output_of_the_layer_that_it_wraps(model):
    x = torch.randn(3, 6).double()
    before = model(x)
    wrap(model, ["0", "2"], rank=3)
    assert torch.equal(model(x), before)


def test_output_and_core_gradient_equal_those_of_the_dense_weight(model):
    layer, dense = wrap(model, ["0"], rank=3)["0"], nn.Linear(6, 5).double()
    layer.fold(frame(5, 6, 3))
    core = torch.randn(3, 3).double()
    layer.core.data.copy_(core)
    dense.load_state_dict(layer.inner.state_dict())
    dense.weight.data += layer.left @ core @ layer.right.mT
    x = torch.randn(2, 7, 6).double()
    torch.testing.assert_close(layer(x), dense(x))
    layer(x).square().sum().backward()
    dense(x).square().sum().backward()
    torch.testing.assert_close(layer.core.grad, layer.left.mT @ dense.weight.grad @ layer.right)
    assert layer.weight.grad is None


class OwnForward(nn.Linear):
    """Computes W x + b in a forward method of its own, like Falcon's layers."""

    def forward(self, x):
        y = x @ self.weight.mT
        return y if self.bias is None else y + self.bias


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("kind", [nn.Linear, OwnForward])
def test_the_joint_operation_equals_the_sum_of_its_terms(kind, lora, bias, trained):
    """If the inner weight is trained too (`trained`), the inner layer runs separately."""
    model = nn.Sequential(kind(6, 5, bias=bias)).double().requires_grad_(False)
    pair = add_lora(model, ["0"], LoraSettings(r=2, target_modules=["0"]))["0.weight"] if lora else None
    layer = wrap(model, ["0"], rank=3)["0"]
    layer.fold(frame(5, 6, 3))
    parameters = [layer.core, *([pair.down, pair.up] if pair else [])]
    for parameter in parameters:
        parameter.data.normal_()
    if trained:
        parameters += list(linear_of(layer).requires_grad_(True).parameters())
    x, mix = torch.randn(2, 7, 6).double().requires_grad_(True), torch.randn(2, 7, 5).double()
    fast, slow = layer(x), term_by_term(layer, x)
    torch.testing.assert_close(fast, slow)
    gradients = [torch.autograd.grad((y * mix).sum(), [x, *parameters]) for y in (fast, slow)]
    torch.testing.assert_close(*gradients)


def test_the_operation_saves_thin_products_instead_of_inputs():
    layer, saved = LowRankUpdate(nn.Linear(64, 48).requires_grad_(False), rank=3), []
    x = torch.randn(100, 64)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    assert sum(t.numel() for t in saved if len(t) == 100) == 100 * 3


def test_adapter_dropout_is_the_same_with_and_without_a_core():
    model = nn.Sequential(nn.Linear(64, 48)).requires_grad_(False)
    pair = add_lora(model, ["0"], LoraSettings(r=2, lora_dropout=0.5, target_modules=["0"]))["0.weight"]
    layer, x = wrap(model, ["0"], rank=3)["0"], torch.randn(5, 64, requires_grad=True)
    parameters = [x, layer.core, pair.down, pair.up]
    for tensor in (layer.left, layer.right, layer.core.data, pair.up.data):
        tensor.normal_()
    found = []
    for answer in (layer, lambda x: term_by_term(layer, x)):
        torch.manual_seed(0)  # of the dropout
        y = answer(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), parameters)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_under_autocast_products_run_in_bfloat16_and_gradients_stay_float32(model):
    model.float()
    layer = wrap(model, ["0"], rank=3)["0"]
    layer.fold(frame(5, 6, 3))
    layer.core.data.normal_()
    x = torch.randn(4, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast, slow = layer(x), term_by_term(layer, x)
    assert fast.dtype == slow.dtype == torch.bfloat16
    torch.testing.assert_close(fast, slow, rtol=0.02, atol=0.05)
    fast.float().sum().backward()
    assert layer.core.grad.dtype == x.grad.dtype == torch.float32


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_a_model_may_modify_an_output_in_place(watched, lora):
    """Gemma 3n and Falcon do so."""
    gradients = []
    for in_place in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 5)).requires_grad_(False)
        if lora:
            add_lora(model, ["0"], LoraSettings(r=2, target_modules=["0"]))
        layer = wrap(model, ["0"], rank=3)["0"]
        layer.left.normal_()
        layer.right.normal_()
        watch = PairWatch(layer)
        watch.on = watched
        y = layer(torch.randn(2, 4, 7))
        y = y.add_(1) if in_place else y + 1
        y.square().sum().backward()
        gradients.append([layer.core.grad, *(d for _, d in watch.take())])
    assert len(gradients[0]) == 1 + watched
    for expected, actual in zip(*gradients, strict=True):
        assert torch.equal(expected, actual)


def test_a_fold_returns_the_core_as_factors_and_sets_it_to_zero(model):
    layer, x = wrap(model, ["0"], rank=3)["0"], torch.randn(3, 6).double()
    layer.fold(frame(5, 6, 3))
    layer.core.data.normal_()
    before = layer(x)
    left, right = layer.fold(frame(5, 6, 3))
    assert not layer.core.any()
    torch.testing.assert_close(layer(x) + x @ right @ left.mT, before)


def test_the_core_of_a_bfloat16_weight_is_float32():
    layer = LowRankUpdate(nn.Linear(6, 5).bfloat16(), rank=3)
    assert (layer.core.dtype, layer.left.dtype, layer.right.dtype) == (torch.float32,) * 3
    assert layer(torch.randn(2, 6).bfloat16()).dtype == torch.bfloat16


def test_a_new_frame_counts_at_once_in_bfloat16_too():
    """U and V are converted once for each frame."""
    layer, x = LowRankUpdate(nn.Linear(6, 5, dtype=torch.bfloat16).requires_grad_(False), rank=3), torch.randn(2, 6)
    for change in (
        lambda: layer.fold(Frame(left=basis(5, 3).float(), right=basis(6, 3).float())),
        lambda: torch._foreach_copy_([layer.left, layer.right], [torch.randn(5, 3), torch.randn(6, 3)]),
        lambda: layer._apply(lambda tensor: tensor * 2),  # as `to` does: other tensors
    ):
        change()
        layer.core.data.normal_()
        torch.testing.assert_close(layer(x.bfloat16()), term_by_term(layer, x.bfloat16()), rtol=0.05, atol=0.2)


def test_unwrapping_restores_the_same_objects(model):
    layers, names = list(model), list(model.state_dict())
    wrap(model, ["0", "2"], rank=3)
    assert all(linear_of(model[i]) is layers[i] for i in (0, 2))
    unwrap(model)
    assert all(a is b for a, b in zip(model, layers, strict=True))
    assert list(model.state_dict()) == names


class TestPairWatch:
    def gradient(self, model, watch, x):
        """Return dL/dW of layer 0 by autograd."""
        weight = linear_of(model[0]).weight
        weight.requires_grad_(True)
        model(x).square().sum().backward()
        grad, weight.grad = weight.grad, None
        weight.requires_grad_(False)
        return grad

    def test_its_pairs_give_the_gradient_of_the_accumulated_step(self, model):
        layer = wrap(model, ["0"], rank=3)["0"]
        watch, total = PairWatch(layer), 0
        watch.on = True
        for _ in range(3):
            total = total + self.gradient(model, watch, torch.randn(2, 7, 6).double())
        pairs = watch.take()
        assert [tuple(x.shape) for pair in pairs for x in pair] == [(14, 6), (14, 5)] * 3
        torch.testing.assert_close(sum(d.mT @ x for x, d in pairs), total)
        assert watch.take() == []

    def test_records_nothing_while_it_is_off(self, model):
        watch = PairWatch(wrap(model, ["0"], rank=3)["0"])
        self.gradient(model, watch, torch.randn(2, 6).double())
        assert watch.take() == []

    def test_records_nothing_without_gradients(self, model):
        watch = PairWatch(wrap(model, ["0"], rank=3)["0"])
        watch.on = True
        with torch.no_grad():
            model(torch.randn(2, 6).double())
        assert watch.take() == []

    def test_records_nothing_after_remove(self, model):
        watch = PairWatch(wrap(model, ["0"], rank=3)["0"])
        watch.on = True
        watch.remove()
        self.gradient(model, watch, torch.randn(2, 6).double())
        assert watch.take() == []

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_records_each_token_once_under_gradient_checkpointing(self, model, reentrant):
        watch = PairWatch(wrap(model, ["0"], rank=3)["0"])
        watch.on = True
        x = torch.randn(4, 6).double().requires_grad_(True)
        plain = self.gradient(model, watch, x)
        once = watch.take()
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
        pairs = watch.take()
        assert len(pairs) == len(once) == 1
        torch.testing.assert_close(pairs[0][1].mT @ pairs[0][0], plain)
