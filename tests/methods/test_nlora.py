"""N-LoRA: the penalty is the L1 norm of the change itself, with its gradients, and training makes the change sparse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gorp.methods import nlora
from gorp.methods.base import TaskContext
from gorp.methods.nlora import L1OfProduct
from tests.runs import fresh, tiny, train


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.integers(0, 99), st.sampled_from([1, 10, 2**22]))
def test_value_and_gradients_are_those_of_the_whole_product(m, n, r, seed, block):
    """Also where m ≠ n, in blocks of rows, and where the product is zero."""
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(*shape, generator=generator, dtype=torch.double) for shape in ((m, r), (r, n)))
    up[0] = 0.0
    pairs = [[x.clone().requires_grad_() for x in (up, down)] for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nlora, "BLOCK", block)
        fast = L1OfProduct.apply(*pairs[0])
    slow = (pairs[1][0] @ pairs[1][1]).abs().sum()
    torch.testing.assert_close(fast, slow)
    for loss in (3 * fast, 3 * slow):
        loss.backward()
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_penalty_is_lambda_times_the_l1_norm_of_what_the_task_adds():
    model = tiny("t5")
    method = fresh("nlora", model, strength=0.25)
    method.begin_task(model, TaskContext(name="t", index=1, seed=0, num_steps=1, batches=lambda *_: iter(())))
    for pair in method.pairs.values():
        pair.up.data.normal_()
    whole = sum(pair.delta().dense().abs().sum() for pair in method.pairs.values())
    torch.testing.assert_close(method.extra_loss(model, {}, None), 0.25 * whole)


def test_a_strong_penalty_makes_a_small_change(tmp_path):
    sizes = []
    for strength in (0.0, 1.0):
        model = tiny("llama")
        method = fresh("nlora", model, strength=strength)
        train(model, method, 1, tmp_path, learning_rate=1e-3, num_train_epochs=4, optim="sgd", weight_decay=0.0)
        sizes.append(sum(delta.dense().abs().sum() for delta in method.deltas.values()).item())
    assert sizes[1] < 0.1 * sizes[0]
