"""EWC: the Fisher information is per example and of mean 1; what it holds does not move."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gorp.layers.lora import LoraSettings
from gorp.methods.base import TaskContext
from gorp.methods.ewc import Ewc, EwcConfig
from tests.runs import fresh, tiny, train


class Logistic(nn.Module):
    """Three inputs, two classes, with the calling convention of a language model."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2, bias=False)

    def forward(self, x, labels):
        return SimpleNamespace(loss=F.cross_entropy(self.layer(x), labels))


EXAMPLES = [
    {"x": torch.tensor([[1.0, 0.5, -1.0]]), "labels": torch.tensor([0])},
    {"x": torch.tensor([[-2.0, 1.0, 0.0]]), "labels": torch.tensor([1])},
    {"x": torch.tensor([[0.5, 0.5, 3.0]]), "labels": torch.tensor([1])},
    {"x": torch.tensor([[9.0, 9.0, 9.0]]), "labels": torch.tensor([0])},  # beyond the limit of three
]


def taught(**options) -> tuple[Ewc, dict[str, torch.Tensor]]:
    """EWC after a task of three examples, and F by hand: squares of one example's gradient, summed, of mean 1."""
    model, lora = Logistic(), LoraSettings(r=1, lora_alpha=2.0, target_modules=("layer",))
    method = Ewc(EwcConfig(fisher_examples=3, **options), lora)
    method.setup(model)
    context = TaskContext(
        name="t", index=1, seed=0, num_steps=1, batches=lambda size, limit: iter(EXAMPLES[:limit:size])
    )
    method.begin_task(model, context)
    pair = method.pairs["layer.weight"]
    pair.up.data = torch.tensor([[0.3], [-0.2]])
    a, b, weight = pair.down.detach().clone(), pair.up.detach().clone(), model.layer.weight.detach()
    by_hand = {"layer.weight::a": torch.zeros(1, 3), "layer.weight::b": torch.zeros(2, 1)}
    for example in EXAMPLES[:3]:
        x = example["x"]
        error = (x @ (weight + 2.0 * b @ a).mT).softmax(dim=1)
        error[0, example["labels"]] -= 1.0
        by_hand["layer.weight::a"] += (2.0 * b.mT @ error.mT @ x).square()
        by_hand["layer.weight::b"] += (2.0 * error.mT @ x @ a.mT).square()
    mean = torch.cat([f.flatten() for f in by_hand.values()]).mean()
    method.end_task(model, torch.optim.SGD([nn.Parameter(torch.zeros(1))]), context)
    return method, {key: f / mean for key, f in by_hand.items()}


def begin_second_task(method: Ewc) -> TaskContext:
    """On a new model."""
    model = Logistic()
    method.setup(model)
    context = TaskContext(name="u", index=2, seed=0, num_steps=1, batches=lambda size, limit: iter(EXAMPLES[:limit]))
    method.begin_task(model, context)
    return context


def test_the_fisher_information_is_per_example_and_has_mean_one():
    method, by_hand = taught()
    for key, expected in by_hand.items():
        torch.testing.assert_close(method.fisher[key], expected)
    assert torch.cat([f.flatten() for f in method.fisher.values()]).mean() == pytest.approx(1.0, rel=1e-6)


def test_the_penalty_is_the_quadratic_form_around_the_last_solution():
    method, fisher = taught(strength=6.0)
    step = 0.1
    begin_second_task(method)
    method.pairs["layer.weight"].down.data += step
    penalty = method.extra_loss(nn.Identity(), {}, None)
    assert penalty.item() == pytest.approx(3.0 * fisher["layer.weight::a"].sum().item() * step**2, rel=1e-4)
    penalty.backward()
    torch.testing.assert_close(
        method.pairs["layer.weight"].down.grad, 6.0 * fisher["layer.weight::a"] * step, rtol=1e-4, atol=1e-6
    )


def test_old_fisher_information_fades_by_its_decay():
    method, by_hand = taught(decay=0.25)
    old = {key: 4.0 * torch.ones_like(f) for key, f in method.fisher.items()}
    method.fisher = dict(old)
    model = Logistic()
    method.setup(model)
    context = TaskContext(name="u", index=2, seed=0, num_steps=1, batches=lambda size, limit: iter(EXAMPLES[:limit]))
    method.begin_task(model, context)
    method.end_task(model, torch.optim.SGD([nn.Parameter(torch.zeros(1))]), context)
    for fisher in method.fisher.values():
        assert (fisher >= 1.0).all()
    total = torch.cat([f.flatten() for f in method.fisher.values()])
    assert total.mean() == pytest.approx(0.25 * 4.0 + 1.0, rel=1e-5)
    assert by_hand.keys() == method.fisher.keys()


def test_there_is_no_penalty_in_the_first_task():
    assert Ewc().extra_loss(nn.Identity(), {}, None) is None


def flat(factors):
    """A and B of each weight by the keys of the Fisher information."""
    return {f"{name}::{letter}": x for name, pair in factors.items() for letter, x in zip("ab", pair, strict=True)}


def test_a_huge_strength_holds_everything_that_mattered_where_it_was(tmp_path):
    """The distance from θ*, weighed by F, after a second task."""
    distances = []
    for strength in (0.0, 1e8):
        model = tiny("llama")
        method = fresh("ewc", model, strength=strength, fisher_examples=8)
        train(model, method, 1, tmp_path, num_train_epochs=3)
        fisher, anchor = method.fisher, flat(method.factors)
        slow = {"lr_scheduler_type": "linear", "optim": "sgd", "learning_rate": 1e-2, "max_grad_norm": 1e-1}
        train(model, method, 2, tmp_path, num_train_epochs=8, weight_decay=0.0, **slow)
        moved = [(fisher[key] * (flat(method.factors)[key] - anchor[key]).square()).sum() for key in anchor]
        distances.append(torch.stack(moved).sum().sqrt().item())
    assert distances[1] < 0.05 * distances[0]
