"""Outputs of a forward pass for a method's loss term: the logits at the K labelled positions of a micro-batch.

A batch of B rows has K labels in total: all entries of `labels` that are not -100, in row order. Prompts and padding
have no labels. A decoder-only model computes its head at these positions only (`gorp.training.answers`), so no other
logits exist. The logits of a label are those that predict it:

    decoder-only      logits[b, l - 1] for the label labels[b, l]
    encoder-decoder   logits[b, l]     for the label labels[b, l]
    one label per row logits[b]        for the label labels[b]
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


Batch = dict[str, Tensor]
"""`input_ids`, `attention_mask` and `labels`, on the model's device."""

IGNORED = -100
"""Label of a position without loss: the `ignore_index` of torch's cross entropy."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Logits and the labels that they predict."""

    logits: Tensor
    """Logits at the labelled positions, K x V, in the model's dtype."""
    labels: Tensor
    """K token ids."""


def answers_of(logits: Tensor, labels: Tensor, *, shifted: bool) -> Answers:
    """Select the logits at the K labelled positions.

    Args:
        logits: B x L x V, or B x V if each row has one label.
        labels: B x L, or B.
        shifted: Whether the logits at one position predict the label at the next position (decoder-only models).
    """
    if shifted and logits.dim() == 3:
        logits, labels = logits[:, :-1], labels[:, 1:]
    labelled = labels != IGNORED
    return Answers(logits=logits[labelled], labels=labels[labelled])


class Outputs:
    """Results of the forward pass of one micro-batch, and access to further forward passes.

    Args:
        model: The model that is trained; it runs only when `on` or `again` is called.
        batch: The micro-batch of the task's loss.
        first: Returns the answers of the forward pass that computed the task's loss; called on first use.
        run: Runs a forward pass of `model` in its current state on a batch and returns the answers.
        weight: Returns the weight of one label of this micro-batch in the loss of the optimizer step. (The Trainer sums
            the losses of micro-batches.)
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        first: Callable[[], Answers],
        run: Callable[[Batch], Answers],
        weight: Callable[[], float | Tensor],
    ) -> None:
        self._model, self._batch = model, batch
        self._first, self._run, self._weight = first, run, weight

    @cached_property
    def answers(self) -> Answers:
        """Answers of the forward pass that computed the task's loss, with its autograd graph."""
        return self._first()

    def on(self, batch: Batch) -> Answers:
        """Run the model in its current state on another batch; the answers have an autograd graph."""
        return self._run(batch)

    def again(self) -> Tensor:
        """Run the model in its current state on the same batch, without graph or dropout; return the logits, K x V."""
        training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                return self._run(self._batch).logits
        finally:
            self._model.train(training)

    def mean(self, values: Tensor) -> Tensor:
        """Return Σ values / N, N the number of labels in the whole optimizer step; use it to scale an `extra_loss`.

        A value then has the same weight as the loss of one label, and the sum over micro-batches and ranks does not
        depend on how the step is divided into them.

        Args:
            values: One value per label, of this batch or of another one.
        """
        return values.sum() * self._weight()
