"""What a method's loss term is shown: logits where a label is, however they came about and however the step is cut."""

import pytest
import torch
from torch.nn import functional as F

from gorp.core.outputs import IGNORED, answers_of
from gorp.methods.base import Method
from tests.runs import rows, tiny, train


def by_hand(logits, labels, shifted):
    """The same, a label at a time."""
    found = [
        (logits[b, place - shifted], labels[b, place])
        for b in range(len(labels))
        for place in range(int(shifted), labels.shape[1])
        if labels[b, place] != IGNORED
    ]
    return torch.stack([row for row, _ in found]), torch.stack([label for _, label in found])


NORM = {"llama": "model.norm.weight", "t5": "decoder.final_layer_norm.weight"}


class Look(Method):
    """Trains the last norm, compares what it is shown with whole forward passes, and takes the task's loss away."""

    name = "look"

    def __init__(self, family, *, compare):
        super().__init__()
        self.family, self.compare, self.looked, self.gradients = family, compare, 0, []

    def begin_task(self, model, task):
        super().begin_task(model, task)
        self.parameter = model.get_parameter(NORM[self.family]).requires_grad_(True)
        self.other = next(iter(task.batches(3, 3)))

    def extra_loss(self, model, batch, outputs):
        other = outputs.on(self.other)
        answers = outputs.answers
        if self.compare:
            for shown, data in ((answers, batch), (other, self.other)):
                with torch.no_grad():
                    whole = model(**data).logits
                logits, labels = by_hand(whole, data["labels"], self.family == "llama")
                assert torch.equal(shown.labels, labels) and shown.logits.requires_grad
                torch.testing.assert_close(shown.logits, logits)
            again = outputs.again()
            assert model.training and not again.requires_grad
            torch.testing.assert_close(again, answers.logits.detach(), rtol=1e-4, atol=1e-5)
        self.looked += 1
        return -outputs.mean(F.cross_entropy(answers.logits.float(), answers.labels, reduction="none"))

    def edit_gradients(self, model, optimizer):
        self.gradients.append(self.parameter.grad.norm().item())


CUTS = {
    "whole": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
    "in pieces": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "autocast": {"bf16": True},
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_it_is_the_whole_forward_pass_where_labels_are_and_weighs_what_the_loss_does(family, cut, tmp_path):
    """The loss that is taken away is the task's to the last token: no gradient is left."""
    model, look = tiny(family), Look(family, compare=cut != "autocast")
    look.setup(model)
    train(model, look, 1, tmp_path, data=rows(1, 20), optim="sgd", weight_decay=0.0, num_train_epochs=1, **CUTS[cut])
    assert look.looked >= 3
    assert max(look.gradients) < (1e-2 if cut == "autocast" else 1e-5)
    for parameter, untouched in zip(model.parameters(), tiny(family).parameters(), strict=True):
        torch.testing.assert_close(parameter, untouched, rtol=0, atol=1e-3 if cut == "autocast" else 1e-6)


def test_with_label_smoothing_logits_are_whole_and_the_same_places_are_shown(tmp_path):
    model, look = tiny("llama"), Look("llama", compare=True)
    look.setup(model)
    train(model, look, 1, tmp_path, data=rows(1, 8), label_smoothing_factor=0.1, max_steps=1)
    assert look.looked == 2


def test_dropout_is_off_in_a_second_look(tmp_path):
    seen = []

    class Twice(Look):
        def extra_loss(self, model, batch, outputs):
            seen.append((outputs.answers.logits.detach(), outputs.again(), outputs.again()))

    model = tiny("t5", dropout=0.3)
    look = Twice("t5", compare=False)
    look.setup(model)
    train(model, look, 1, tmp_path, max_steps=1)
    first, second, third = seen[0]
    assert torch.equal(second, third) and not torch.allclose(first, second)


def test_one_label_a_row():
    logits, labels = torch.arange(12.0).view(4, 3), torch.tensor([2, IGNORED, 0, 1])
    answers = answers_of(logits, labels, shifted=True)
    assert torch.equal(answers.logits, logits[[0, 2, 3]]) and answers.labels.tolist() == [2, 0, 1]
