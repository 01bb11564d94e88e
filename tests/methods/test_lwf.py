"""LwF: the teacher is the model before the task, and a strong pull keeps its answers."""

import pytest
import torch
from torch.nn import functional as F

from gorp.core.outputs import Answers, Outputs
from tests.methods.test_contract import logits
from tests.runs import fresh, tiny, train


@pytest.mark.parametrize("name", ["lwf", "sequential_lora"])
@pytest.mark.parametrize("bf16", [False, True])
def test_switched_off_it_is_the_model_before_the_task_and_gradients_are_unharmed(name, bf16, tmp_path):
    """In the middle of a task, with a graph open, under autocast too; one pair goes back to where the last task was."""
    model, looked = tiny("llama"), []
    method = fresh(name, model)
    train(model, method, 1, tmp_path)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        before = logits(model).float()

    def look(model, batch, outputs):
        if method.step != 2:
            return None
        answers, pair = outputs.answers, next(iter(method.pairs.values()))
        loss = F.cross_entropy(answers.logits, answers.labels)
        whole = torch.autograd.grad(loss, pair.up, retain_graph=True)[0]
        with method.as_before():
            off, teacher = logits(model), outputs.again()
        moved = (logits(model) - before).norm()
        assert (off - before).norm() <= (0.2 if bf16 else 1e-4) * moved  # one pair or folded: rounded otherwise
        assert (teacher - answers.logits).norm() > 0.01 * teacher.norm()
        assert torch.equal(torch.autograd.grad(loss, pair.up, retain_graph=True)[0], whole)
        assert torch.equal(outputs.on(batch).logits, answers.logits)
        looked.append(teacher)
        return None

    method.extra_loss = look
    train(model, method, 2, tmp_path, bf16=bf16)
    assert len(looked) == 2


def test_the_term_is_lambda_tau_squared_times_the_mean_divergence():
    method = fresh("lwf", tiny("llama"), strength=0.5, temperature=3.0)
    method._is_first_task = False
    generator = torch.Generator().manual_seed(0)
    new, old = (torch.randn(4, 7, generator=generator, dtype=torch.float32) for _ in range(2))
    labels = torch.zeros(4, dtype=torch.long)
    seen = Outputs(
        torch.nn.Identity(),
        {},
        first=lambda: Answers(logits=new, labels=labels),
        run=lambda batch: Answers(logits=old, labels=labels),
        weight=lambda: 1 / 4,
    )
    by_hand = 0.0
    for z_new, z_old in zip(new, old, strict=True):
        p, q = (z_old / 3).softmax(dim=0), (z_new / 3).softmax(dim=0)
        by_hand += (p * (p / q).log()).sum() / 4
    torch.testing.assert_close(method.extra_loss(torch.nn.Identity(), {}, seen), 0.5 * 9.0 * by_hand)


def test_the_first_task_has_nothing_to_keep_and_a_strong_pull_keeps_the_second_one_near(tmp_path):
    moved = []
    for strength in (0.0, 100.0):
        model = tiny("llama")
        method = fresh("lwf", model, strength=strength)
        train(model, method, 1, tmp_path)
        first = {name: delta.dense().clone() for name, delta in method.deltas.items()}
        before = logits(model).log_softmax(dim=-1)
        train(model, method, 2, tmp_path)
        moved.append((first, (logits(model).log_softmax(dim=-1) - before).norm().item()))
    for name, delta in moved[0][0].items():
        assert torch.equal(delta, moved[1][0][name])
    assert moved[1][1] < 0.5 * moved[0][1]
