"""The loss of a decoder-only model with logits where there is a label, and nowhere else.

The tokens of a prompt have no label, yet their logits cost as much as an answer's: 2·H·V operations and V floats a
token, with 128 thousand words and 4096 tokens 2 GB. Of the states h, B x L x H, the head W gets the K that a label
follows:

    loss = - Σ_{t : y_{t+1} is a label} log softmax(W h_t)[y_{t+1}] / N         N labels in the step, or in the batch

It is the loss that transformers computes, and it serves every method alike.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from gorp.core.outputs import IGNORED


class AnswerLoss:
    """Give it to a Trainer as `compute_loss_func`, and run the model inside `watching(labels)`."""

    def __init__(self, head: nn.Module) -> None:
        """Args: `head`: the module that turns states into logits."""
        self.head = head
        self._targets = torch.empty(0)

    @contextmanager
    def watching(self, labels: Tensor) -> Iterator[None]:
        """While this is open, the head sees the states that a label follows.

        Args:
            labels: B x L as transformers wants them, not shifted.
        """
        targets = nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:].flatten()
        places = (targets != IGNORED).nonzero()[:, 0]
        self._targets = targets[places][None]
        hook = self.head.register_forward_pre_hook(
            lambda _, inputs: (inputs[0].flatten(0, 1)[places][None], *inputs[1:])
        )
        try:
            yield
        finally:
            hook.remove()

    def __call__(
        self, outputs: Mapping[str, Any], labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss, a number in float32.

        Args:
            outputs: Of the model, with logits 1 x K x V.
            labels: Those given to `watching`; not looked at again.
            num_items_in_batch: N, where it is not the number of labels in this batch.
        """
        logits = outputs["logits"]
        items: Any = num_items_in_batch
        return ForCausalLMLoss(logits, None, logits.shape[-1], items, shift_labels=self._targets)


def answer_loss(model: PreTrainedModel) -> AnswerLoss | None:
    """The loss for `model`, or None where transformers' own has to compute it.

    That is so for an encoder-decoder, a loss of its own, experts with a loss for their router, and a model whose logits
    are not its head's output token by token, which is tried on three tokens.
    """
    head = model.get_output_embeddings()
    config: Any = model.config
    if head is None or config.is_encoder_decoder or getattr(config, "output_router_logits", False):
        return None
    if model.loss_function is not ForCausalLMLoss:
        return None
    loss, training = AnswerLoss(head), model.training
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    model.eval()
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        with loss.watching(torch.tensor([[IGNORED, IGNORED, 1]], device=model.device)):
            one = model(input_ids=ids, use_cache=False).logits
    model.train(training)
    wanted = whole[:, 1:2]
    same = one.shape == wanted.shape and torch.allclose(one, wanted, rtol=1e-2, atol=1e-3)
    return loss if same else None
