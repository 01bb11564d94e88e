"""The loss of a decoder-only model, with logits computed only at positions that predict a label.

The tokens of a prompt have no label, but their logits cost as much as those of an answer: 2·H·V flops and V floats per
token. With a vocabulary of 128 thousand and 4096 tokens that is 2 GB. So of the hidden states h, B x L x H, the head W
gets only the K that a label follows:

    loss = - Σ_{t : y_{t+1} is a label} log softmax(W h_t)[y_{t+1}] / N         N labels in the step, or in the batch

The value is the one that transformers computes, and it is used for every method.
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
    """A loss function for a Trainer's `compute_loss_func`; the model must run inside `watching(labels)`.

    Args:
        head: The module that computes logits from hidden states.
    """

    def __init__(self, head: nn.Module) -> None:
        self.head = head
        self._targets = torch.empty(0)

    @contextmanager
    def watching(self, labels: Tensor) -> Iterator[None]:
        """Inside this context the head gets only the hidden states that a label follows, as one row: 1 x K x H.

        Args:
            labels: B x L, not shifted, as transformers expects them.
        """
        targets = nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:].flatten()
        positions = (targets != IGNORED).nonzero()[:, 0]  # K indices into B·L
        self._targets = targets[positions][None]  # 1 x K
        hook = self.head.register_forward_pre_hook(
            lambda _, inputs: (inputs[0].flatten(0, 1)[positions][None], *inputs[1:])
        )
        try:
            yield
        finally:
            hook.remove()

    def __call__(
        self, outputs: Mapping[str, Any], labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Return the loss, a float32 scalar.

        Args:
            outputs: The model's outputs, with logits 1 x K x V.
            labels: The labels given to `watching`; not used again.
            num_items_in_batch: N; None for the number of labels in this batch.
        """
        logits = outputs["logits"]
        items: Any = num_items_in_batch
        return ForCausalLMLoss(logits, None, logits.shape[-1], items, shift_labels=self._targets)


def answer_loss(model: PreTrainedModel) -> AnswerLoss | None:
    """Return the loss for `model`, or None if the model must compute its loss itself.

    It must if it is an encoder-decoder, has a loss function of its own or a router loss for its experts, or if its
    logits are not the head's output for each token separately, which is tested on three tokens.
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
        whole = model(input_ids=ids, use_cache=False).logits  # 1 x 3 x V
        with loss.watching(torch.tensor([[IGNORED, IGNORED, 1]], device=model.device)):
            one = model(input_ids=ids, use_cache=False).logits  # 1 x 1 x V
    model.train(training)
    expected = whole[:, 1:2]
    same = one.shape == expected.shape and torch.allclose(one, expected, rtol=1e-2, atol=1e-3)
    return loss if same else None
