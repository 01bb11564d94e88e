"""What a method's loss term sees of a forward pass: the logits where an answer's token has a label, K of them.

A batch of B rows has K labels in all. Prompts have none, and padding has none, so the order is that of the labels that
are not -100, row by row. A decoder-only model computes its head there and nowhere else (`gorp.training.answers`), so
there are no other logits to be had. The logits of a label are those that predict it:

    decoder-only      logits[b, l - 1] for the label labels[b, l]
    encoder-decoder   logits[b, l]     for the label labels[b, l]
    one label a row   logits[b]        for the label labels[b]
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


Batch = dict[str, Tensor]
"""`input_ids`, `attention_mask` and `labels`, on the model's device."""

IGNORED = -100
"""Label of a position without loss, the `ignore_index` of torch's cross entropy."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Logits and the labels that they predict."""

    logits: Tensor
    """K x V, in the dtype that the model returns."""
    labels: Tensor
    """K token ids."""


def answers_of(logits: Tensor, labels: Tensor, *, shifted: bool) -> Answers:
    """The K places of whole logits that have a label.

    Args:
        logits: B x L x V, or B x V where a row has one label.
        labels: B x L, or B.
        shifted: Whether the logits at a place predict the label of the next one.
    """
    if shifted and logits.dim() == 3:
        logits, labels = logits[:, :-1], labels[:, 1:]
    places = labels != IGNORED
    return Answers(logits=logits[places], labels=labels[places])


class Outputs:
    """The forward pass of one micro-batch, and more forward passes like it.

    Args:
        model: It is not run before somebody asks.
        batch: That was run.
        first: What it gave, computed on demand.
        run: From a batch to its answers, by a forward pass of `model` as it is at that moment.
        weight: What a label of this micro-batch counts in the loss of the step: the Trainer adds up micro-batches.
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
        """Of the forward pass that made the task's loss, with its graph."""
        return self._first()

    def on(self, batch: Batch) -> Answers:
        """Of another batch, through the model as it is now, with a graph."""
        return self._run(batch)

    def again(self) -> Tensor:
        """The logits of the same batch from the model as it is now, K x V: without a graph, and without dropout."""
        training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                return self._run(self._batch).logits
        finally:
            self._model.train(training)

    def mean(self, values: Tensor) -> Tensor:
        """Σ values / N with N the labels of the whole optimizer step, in the scale that `extra_loss` returns.

        However the step is cut into micro-batches and ranks, the sum over them is the same, and a value weighs what
        the loss of one label weighs.

        Args:
            values: One for each label, or for each label of another batch.
        """
        return values.sum() * self._weight()
