"""Compute the log-likelihood of each label of a closed set. The prompt is computed once, then every label after it."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedTokenizerBase

from gorp.data import PLAIN, Encoding, Form, encode_completions, encode_prompts
from gorp.data.encode import places
from gorp.errors import DataError
from gorp.evaluation.batches import (
    EvalConfig,
    Progress,
    batches_by_length,
    can_be_padded,
    evaluating,
    is_encoder_decoder,
    pad_token_id,
    tokens_at_once,
)
from gorp.evaluation.likelihood import log_softmax, without_cache, without_decoder_cache
from gorp.evaluation.reading import (
    UNSUPPORTED_CACHE,
    Reading,
    encode,
    read_by_decoder,
    read_start_token,
)


def rank_labels(
    model: Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    labels: Sequence[str],
    *,
    encoding: Encoding,
    config: EvalConfig,
    forms: Sequence[Form] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Return the log-likelihood of every label after every prompt.

        ℓ(label) = Σₜ log p(yₜ | prompt, y₁ … yₜ₋₁)        y: the label's tokens and its end, as in training

    This is the sum over the tokens, not the mean. Because it includes the end, exp ℓ is the probability that the model,
    sampling freely, answers with exactly this label. So long labels need no correction, and a label that is the
    beginning of another one has no advantage.

    The model processes a prompt once for all labels. The labels follow one after the other, on the cached keys and
    values of the prompt, so memory does not grow with their number. If the cache cannot be rewound to the end of the
    prompt, as in recurrent layers, the model processes the prompt again for every label, padded as in training; for an
    encoder-decoder, the encoder's output is kept and only the decoder runs again.

    Args:
        model: A transformers model, or a PEFT model around one.
        tokenizer: The model's tokenizer.
        prompts: Rendered text, any number of rows.
        labels: At least one, each once.
        encoding: Limits on the tokens of a prompt, as in training.
        config: Batch size, counted in prompts; `limit` is not used here.
        forms: Forms of the rows; None if all are plain.
        progress: Called with (rows done, all rows) after every batch.

    Returns:
        For each prompt, in the given order: label -> ℓ in nats, labels in the given order.

    Raises:
        DataError: If there are no labels, or a label occurs twice.
        ModelError: If the model has no decoder start token.
    """
    if not labels or len(set(labels)) < len(labels):
        raise DataError(
            f"labels: got {list(labels)}; wanted at least one label, and no label twice. Correct the task's `labels`."
        )
    encoder_decoder = is_encoder_decoder(model)
    forms = [PLAIN] * len(prompts) if forms is None else forms
    rows = encode_prompts(prompts, tokenizer, encoder_decoder=encoder_decoder, encoding=encoding, forms=forms)
    ranked: list[dict[str, float]] = [{}] * len(rows)
    done, limits = 0, {"padded": can_be_padded(model, tokenizer), "most_tokens": tokens_at_once(model)}
    with evaluating(model):
        for members in _groups(prompts, tokenizer, forms):
            first, count = members[0], len(labels)
            answers = encode_completions(
                labels,
                tokenizer,
                prompts=[prompts[first]] * count,
                encoder_decoder=encoder_decoder,
                forms=[forms[first]] * count,
            )
            for batch in batches_by_length([rows[index] for index in members], config.batch_size, **limits):
                indices = [members[position] for position in batch]
                scores = _score([rows[index] for index in indices], answers, model, pad_token_id(tokenizer))
                for index, line in zip(indices, scores.tolist(), strict=True):
                    ranked[index] = dict(zip(labels, line, strict=True))
                done += len(indices)
                if progress is not None:
                    progress(done, len(rows))
    return ranked


def _groups(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, forms: Sequence[Form]) -> Iterable[list[int]]:
    """Group the indices of prompts after which a label has the same tokens."""
    groups: dict[tuple[Form, str], list[int]] = {}
    for index, key in enumerate(zip(forms, places(prompts, tokenizer, forms), strict=True)):
        groups.setdefault(key, []).append(index)
    return groups.values()


def _score(rows: list[list[int]], answers: list[list[int]], model: Module, pad: int) -> Tensor:
    """Return ℓ of every answer after every row, B x len(answers)."""
    if not is_encoder_decoder(model):
        reading = read_by_decoder(model, rows, pad)
        if reading is not None:
            return _score_cached(reading, answers)
        return torch.stack([without_cache(rows, [answer] * len(rows), model, pad) for answer in answers], dim=1)
    encoded, mask = encode(model, rows, pad)
    try:
        reading = read_start_token(model, encoded, mask)
        if reading is not None:
            return _score_cached(reading, answers)
    except UNSUPPORTED_CACHE:
        pass
    columns = [without_decoder_cache(encoded, mask, [answer] * len(rows), model) for answer in answers]
    return torch.stack(columns, dim=1)


def _score_cached(reading: Reading, answers: list[list[int]]) -> Tensor:
    """Return ℓ of every answer after the prompts in the cache, B x len(answers)."""
    first = log_softmax(reading.logits)  # B x V
    reading.cache.activate_past_recording()  # a sliding window keeps the tokens that a label pushes out, for rewind
    columns = []
    for answer in answers:
        column = first[:, answer[0]]
        if len(answer) > 1:
            tokens = torch.tensor(answer, device=first.device)
            following = log_softmax(reading.advance(tokens[:-1].expand(len(first), -1)))  # B x (n - 1) x V
            reading.rewind(len(answer) - 1)
            column = column + following[:, torch.arange(len(answer) - 1), tokens[1:]].sum(dim=1)
        columns.append(column)
    return torch.stack(columns, dim=1)
