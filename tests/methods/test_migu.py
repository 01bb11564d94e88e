"""MIGU: rows of small outputs stand still to the bit, the others move; padding decides nothing."""

import pytest
import torch

from gorp.methods.migu import smallest
from tests.runs import fresh, rows, tiny, train


def test_the_smallest_are_chosen_and_one_is_left():
    assert smallest(torch.tensor([3.0, 1.0, 2.0, 5.0]), 0.5).tolist() == [False, True, True, False]
    assert smallest(torch.tensor([3.0, 1.0, 2.0]), 0.7).tolist() == [False, True, True]
    assert smallest(torch.tensor([1.0]), 0.99).tolist() == [False]
    assert not smallest(torch.ones(4), 0.0).any()


def moving(masked, folder, index=2, **options):
    """For each step and factor: which rows stood still, and which have no gradient."""
    model, found = tiny("llama"), []
    method = fresh("migu", model, masked=masked)
    if index == 2:
        train(model, method, 1, folder)
    edit, after = method.edit_gradients, method.after_step

    def edited(model, optimizer):
        held = [(p, p.detach().clone()) for pair in method.pairs.values() for p in (pair.down, pair.up)]
        edit(model, optimizer)
        found.append([(p, before, (p.grad == 0).all(dim=1)) for p, before in held])

    def stepped(model, optimizer):
        after(model, optimizer)
        found[-1] = [((p == before).all(dim=1), without) for p, before, without in found[-1]]

    method.edit_gradients, method.after_step = edited, stepped
    train(model, method, index, folder, **options)
    return found


def test_masked_rows_are_bit_for_bit_as_before_the_step(tmp_path):
    """Under Adam with momentum and decay, from the second step on too; 70 percent of the rows of each factor."""
    steps = moving("update", tmp_path)
    assert len(steps) == 8
    for factors in steps[1:]:  # in the first, A has no gradient yet: B is zero
        for still, without in factors:
            assert torch.equal(still, without)
            assert still.sum() == int(0.7 * len(still))


def test_as_published_momentum_goes_on_moving_them(tmp_path):
    steps = moving("gradient", tmp_path)
    downs, ups = steps[-1][::2], steps[-1][1::2]
    assert not any(still.any() for still, _ in downs)
    assert any((without & ~still).any() for still, without in ups)  # a row of B that never had a gradient is zero
    assert all(without.sum() == int(0.7 * len(without)) for _, without in steps[-1])


def test_no_row_is_masked_in_the_first_task(tmp_path):
    assert not any(without.any() for _, without in moving("update", tmp_path, index=1)[-1])


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_padding_decides_nothing(family, tmp_path):
    """The same rows with short ones beside a long one, or each alone: the same sums of outputs."""
    sums = []
    data = rows(2, 7).add_item({"prompt": "The light " * 9 + "is red. Answer:", "completion": "good"})
    for size in (8, 1):
        model = tiny(family)
        method = fresh("migu", model)
        train(model, method, 1, tmp_path)
        edit = method.edit_gradients
        sums.append({})

        def keep(model, optimizer, method=method, edit=edit, seen=sums[-1]):
            seen.update(method._magnitudes)
            edit(model, optimizer)

        method.edit_gradients = keep
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        train(model, method, 2, tmp_path, data=data, max_steps=1, **cut)
    for name, (inner, outer) in sums[0].items():
        torch.testing.assert_close(sums[1][name][0], inner, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sums[1][name][1], outer, rtol=1e-4, atol=1e-5)
