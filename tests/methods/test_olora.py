"""O-LoRA: the penalty is the overlap of the rows of A, and training removes it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gorp.methods.olora import OLora, OLoraConfig
from tests.runs import fresh, tiny, train


def with_rows(earlier, now, **options):
    method = OLora(OLoraConfig(**options))
    method.rows = method._device_rows = {"w": torch.tensor(earlier)}
    method.pairs = {"w": SimpleNamespace(down=nn.Parameter(torch.tensor(now)))}
    return method


EARLIER = [[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]
NOW = [[3.0, -1.0, 0.0], [0.0, 2.0, 1.0]]  # overlaps: 3, 2; -1, 2


@pytest.mark.parametrize(
    ("penalty", "by_hand"), [("squared", 9.0 + 4.0 + 1.0 + 4.0), ("absolute", 3.0 + 2.0 + 1.0 + 2.0)]
)
def test_the_penalty_is_the_hand_computed_overlap(penalty, by_hand):
    method = with_rows(EARLIER, NOW, strength=0.5, penalty=penalty)
    assert method.extra_loss(nn.Identity(), {}, None).item() == pytest.approx(0.5 * by_hand)


@pytest.mark.parametrize("penalty", ["squared", "absolute"])
def test_orthogonal_rows_cost_nothing(penalty):
    method = with_rows(EARLIER, [[-2.0, 0.0, 1.0], [4.0, 0.0, -2.0]], penalty=penalty)
    assert method.extra_loss(nn.Identity(), {}, None).item() == 0.0


def test_there_is_no_penalty_in_the_first_task():
    assert OLora().extra_loss(nn.Identity(), {}, None) is None


def test_training_makes_the_rows_orthogonal(tmp_path):
    overlaps = []
    for strength in (0.0, 50.0):
        model = tiny("llama")
        method = fresh("olora", model, strength=strength)
        train(model, method, 1, tmp_path)
        train(model, method, 2, tmp_path, num_train_epochs=10, lr_scheduler_type="linear")
        pairs = [(rows[:8], rows[8:]) for rows in method.rows.values()]
        overlaps.append(sum((a @ b.mT).square().sum() / (a.norm() * b.norm()) ** 2 for a, b in pairs).item())
    assert overlaps[1] < 0.05 * overlaps[0]


def test_it_keeps_the_rows_of_every_task(tmp_path):
    model = tiny("llama")
    method = fresh("olora", model)
    for task in (1, 2, 1):
        train(model, method, task, tmp_path, max_steps=1)
    assert {tuple(rows.shape) for rows in method.rows.values()} == {(3 * 8, 32)}


def test_between_tasks_the_device_holds_no_rows_of_earlier_tasks(tmp_path):
    model = tiny("llama")
    method = fresh("olora", model)
    for task in (1, 2):
        train(model, method, task, tmp_path, max_steps=1)
    assert method.resident_tensors() == []
