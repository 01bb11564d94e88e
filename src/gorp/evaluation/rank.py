"""How likely a model finds each label of a closed set: the prompt is read once, every label is tried after it."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedTokenizerBase
from transformers.utils.generic import ModelOutput

from gorp.data import PLAIN, Collator, Encoding, Form, encode_completions, encode_prompts
from gorp.data.encode import places
from gorp.errors import DataError
from gorp.evaluation.batches import (
    EvalConfig,
    Progress,
    batches_by_length,
    can_be_padded,
    device_of,
    evaluating,
    is_encoder_decoder,
    pad_token_id,
    tokens_at_once,
)
from gorp.evaluation.reading import (
    DOES_NOT_GO_ON,
    Reading,
    behind_encoder,
    encode,
    read_behind_encoder,
    read_by_decoder,
    start_tokens,
    understood,
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
    """The log-likelihood of every label after every prompt.

        ℓ(label) = Σₜ log p(yₜ | prompt, y₁ … yₜ₋₁)        y: the label's tokens and its end, as in training

    It is the sum, not the mean per token. With the end in it, exp ℓ is the probability that the model, sampling freely,
    answers with exactly this label; so a long label needs no correction, and a label that begins another gains nothing.

    A prompt goes through the model once, whatever the number of labels. The labels follow one after the other, on top
    of the keys and values cached for the prompt, so memory does not grow with their number. A model whose cache cannot
    be put back as it was before a label, as that of a recurrent layer, reads the prompt anew with every label, padded
    as in training; behind an encoder, whose output is kept, only the decoder reads anew.

    Args:
        model: A transformers model, or a PEFT model around one.
        tokenizer: The model's tokenizer.
        prompts: Rendered text, any number of rows.
        labels: At least one, each once.
        encoding: Limits the tokens of a prompt, as in training.
        config: Batch size, counted in prompts; `limit` is not used here.
        forms: Of the rows that the prompts belong to; all plain when None.
        progress: Called with (rows done, rows in all) after every batch.

    Returns:
        For each prompt, in the order given: label -> ℓ in nats, labels in the order given.

    Raises:
        DataError: If there are no labels or one occurs twice.
        ModelError: If the model has no decoder start token.
    """
    if not labels or len(set(labels)) < len(labels):
        raise DataError(f"labels: got {list(labels)}; wanted at least one, each once. Correct the task's label set.")
    encoder_decoder = is_encoder_decoder(model)
    forms = [PLAIN] * len(prompts) if forms is None else forms
    rows = encode_prompts(prompts, tokenizer, encoder_decoder=encoder_decoder, encoding=encoding, forms=forms)
    ranked: list[dict[str, float]] = [{}] * len(rows)
    done, limits = 0, {"padded": can_be_padded(model, tokenizer), "most_tokens": tokens_at_once(model)}
    with evaluating(model):
        for members in _alike(prompts, tokenizer, forms):
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


def _alike(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, forms: Sequence[Form]) -> Iterable[list[int]]:
    """The indices of prompts behind which a label has the same tokens."""
    groups: dict[tuple[Form, str], list[int]] = {}
    for index, key in enumerate(zip(forms, places(prompts, tokenizer, forms), strict=True)):
        groups.setdefault(key, []).append(index)
    return groups.values()


def _score(rows: list[list[int]], answers: list[list[int]], model: Module, pad: int) -> Tensor:
    """ℓ of every answer after every row, B x len(answers)."""
    if not is_encoder_decoder(model):
        reading = read_by_decoder(model, rows, pad)
        if reading is not None:
            return _score_after(reading, answers)
        return torch.stack([_score_whole(rows, answer, model, pad) for answer in answers], dim=1)
    encoded, mask = encode(model, rows, pad)
    try:
        reading = read_behind_encoder(model, encoded, mask)
        if reading is not None:
            return _score_after(reading, answers)
    except DOES_NOT_GO_ON:
        pass
    return torch.stack([_score_behind_encoder(encoded, mask, answer, model) for answer in answers], dim=1)


def _score_after(reading: Reading, answers: list[list[int]]) -> Tensor:
    """ℓ of every answer after the prompts that were read, B x len(answers)."""
    first = _log_softmax(reading.logits)  # B x V
    reading.cache.activate_past_recording()  # a sliding window keeps what a label pushes out of it
    columns = []
    for answer in answers:
        column = first[:, answer[0]]
        if len(answer) > 1:
            tokens = torch.tensor(answer, device=first.device)
            following = _log_softmax(reading.go_on(tokens[:-1].expand(len(first), -1)))  # B x (n - 1) x V
            reading.go_back(len(answer) - 1)
            column = column + following[:, torch.arange(len(answer) - 1), tokens[1:]].sum(dim=1)
        columns.append(column)
    return torch.stack(columns, dim=1)


def _score_whole(rows: list[list[int]], answer: list[int], model: Module, pad: int) -> Tensor:
    """ℓ of one answer after every row of a decoder, B, without a cache; padding stands on the right, as in training."""
    forward: Any = model
    batch = Collator(pad)([{"input_ids": row + answer, "labels": row + answer} for row in rows])
    input_ids, mask = (batch[name].to(device_of(model)) for name in ("input_ids", "attention_mask"))
    logits = forward(input_ids=input_ids, attention_mask=mask, **understood(model, use_cache=False)).logits
    starts = torch.tensor([len(row) for row in rows], device=logits.device)
    at = starts[:, None] + torch.arange(len(answer), device=logits.device)  # B x n
    rows_ = torch.arange(len(rows), device=logits.device)[:, None]
    scores = _log_softmax(logits[rows_, at - 1])  # B x n x V
    return scores.gather(2, input_ids.gather(1, at)[..., None])[..., 0].sum(dim=1)


def _score_behind_encoder(encoded: ModelOutput, mask: Tensor, answer: list[int], model: Module) -> Tensor:
    """ℓ of one answer after every row of an encoder's output, B, without a cache of the decoder's."""
    forward: Any = model
    tokens = torch.tensor(answer, device=mask.device).expand(len(mask), -1)  # B x n
    inputs = torch.cat([start_tokens(model, mask), tokens[:, :-1]], dim=1)
    logits = forward(**behind_encoder(encoded, mask, inputs), use_cache=False).logits  # B x n x V
    return _log_softmax(logits).gather(2, tokens[..., None])[..., 0].sum(dim=1)


def _log_softmax(logits: Tensor) -> Tensor:
    """In float32 at least: half precision has three digits, and labels differ by less."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
