"""Compute how well a model predicts running text, in nats per token; every text has its own number.

decoder            -(1/n) Σₜ log p(xₜ | x₁ … xₜ₋₁)        n: the tokens after the first; a bos is not counted
encoder-decoder    -(1/n) Σₜ log p(xₜ | x₁ … x_h, x_h₊₁ … xₜ₋₁)   the encoder reads the first half, x₁ … x_h, and
                                                         the decoder predicts the n tokens of the second
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn import Module
from transformers import PreTrainedTokenizerBase

from gorp.data.tokens import added_tokens, text_ids
from gorp.evaluation.batches import (
    Progress,
    batches_by_length,
    can_be_padded,
    evaluating,
    is_encoder_decoder,
    pad_token_id,
)
from gorp.evaluation.likelihood import log_likelihoods
from gorp.models.positions import positions_of


LONGEST = 128
"""Most tokens of a text that are read, from its beginning, without those that the tokenizer adds; see `tokens_read`."""

ROWS_AT_ONCE, TOKENS_AT_ONCE = 32, 512
"""Most texts and tokens of a batch: all their logits are in memory, with 150,000 entries each 300 MB a copy."""


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """How well one text is predicted."""

    index: int
    """Of the text, from 0."""
    tokens: int
    """n, the predicted tokens."""
    nll: float
    """Mean negative log-likelihood of these tokens, in nats; not finite if the model is broken."""


def predicted_parts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, encoder_decoder: bool, longest: int = LONGEST
) -> dict[int, tuple[list[int], list[int]]]:
    """Return for each text the tokens that the model is given and those that it has to predict.

    A text with nothing to predict is left out: it has a single token.

    Args:
        texts: Any number of texts. Names of special tokens in them are text.
        tokenizer: The model's.
        encoder_decoder: Kind of model.
        longest: Most tokens of a text.

    Returns:
        Index of the text -> both lists.
    """
    before, after = added_tokens(tokenizer)
    found = {}
    for index, ids in enumerate(each[:longest] for each in text_ids(texts, tokenizer)):
        if encoder_decoder:
            cut = (len(ids) + 1) // 2
            given, predicted = before + ids[:cut] + after, ids[cut:]
        else:
            cut = 0 if before else 1
            given, predicted = before + ids[:cut], ids[cut:]
        if given and predicted:
            found[index] = (given, predicted)
    return found


def tokens_read(model: Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens of a text that are read: `LONGEST`, or as many as the model has positions for.

    Args:
        model: A transformers model, or a PEFT model around one.
        tokenizer: The model's tokenizer.
    """
    limits, (before, after) = positions_of(model), added_tokens(tokenizer)
    rooms = [LONGEST]
    if not is_encoder_decoder(model):
        rooms += [limits.prompt - len(before)] if limits.prompt else []
    else:  # the longer half is read by the encoder, the other by the decoder
        rooms += [2 * (limits.prompt - len(before) - len(after))] if limits.prompt else []
        rooms += [2 * limits.answer + 1] if limits.answer else []
    return min(rooms)


def text_losses(
    model: Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, progress: Progress | None = None
) -> list[TextLoss]:
    """Return the loss of each text that has anything to predict, in their order.

    Padding is masked, so a text gets the same number in a batch as alone, to within rounding. The random state and the
    mode of every submodule do not change.

    Args:
        model: A transformers model, or a PEFT model around one.
        tokenizer: The model's tokenizer.
        texts: Any number of texts; of a long one the first `tokens_read` tokens count.
        progress: Called with (texts done, all texts) after every batch.
    """
    longest = tokens_read(model, tokenizer)
    parts = predicted_parts(texts, tokenizer, encoder_decoder=is_encoder_decoder(model), longest=longest)
    indices, losses = list(parts), dict[int, TextLoss]()
    whole = [parts[index][0] + parts[index][1] for index in indices]
    asked = {"padded": can_be_padded(model, tokenizer), "most_tokens": TOKENS_AT_ONCE}
    with evaluating(model):
        for batch in batches_by_length(whole, ROWS_AT_ONCE, **asked):
            members = [indices[place] for place in batch]
            given, predicted = ([parts[index][side] for index in members] for side in (0, 1))
            scores = log_likelihoods(model, given, predicted, pad_token_id(tokenizer), None)
            for index, score in zip(members, scores, strict=True):
                tokens = len(parts[index][1])
                losses[index] = TextLoss(index=index, tokens=tokens, nll=-score / tokens)
            if progress is not None:
                progress(len(losses), len(indices))
    return [losses[index] for index in indices]
