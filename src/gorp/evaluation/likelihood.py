"""Compute the log-likelihood of a given answer after each prompt, teacher forced; every row has its own answer.

    ℓ = Σₜ log p(yₜ | prompt, y₁ … yₜ₋₁)        y: the answer's tokens and its end, as in training

The prompts are in a cache already where the model allows it (`Reading`), so only the answers go through the model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers.utils.generic import ModelOutput

from gorp.data import Collator
from gorp.data.collate import pad_right
from gorp.evaluation.batches import device_of
from gorp.evaluation.reading import UNSUPPORTED_CACHE, Reading, decoder_arguments, encode, start_tokens, supported


LOGITS_AT_ONCE = 256
"""Most tokens whose logits are computed at a time: 150,000 entries each, in float32, take 150 MB."""

FILLER = 0
"""Id behind a shorter answer. Its result is not used, and a causal model's earlier logits do not depend on it."""


def log_likelihoods(
    model: Module, rows: Sequence[list[int]], answers: Sequence[list[int]], pad: int, reading: Reading | None
) -> list[float]:
    """Return ℓ of each answer after its prompt, in nats.

    Args:
        model: A transformers model, or a PEFT model around one, in eval mode.
        rows: Encoded prompts.
        answers: Encoded answers with their ends, at least one token each.
        pad: The padding id.
        reading: The model's state after these prompts; it is used up. None if its cache cannot be used: then the
            prompts go through the model again.
    """
    if reading is None:
        encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        if not encoder_decoder:
            return without_cache(rows, answers, model, pad).tolist()
        return without_decoder_cache(*encode(model, list(rows), pad), answers, model).tolist()
    encoded, mask = reading.encoded, reading.mask
    try:
        return _after_reading(reading, answers).tolist()
    except UNSUPPORTED_CACHE:
        if encoded is None:
            return without_cache(rows, answers, model, pad).tolist()
        return without_decoder_cache(encoded, mask, answers, model).tolist()


def _after_reading(reading: Reading, answers: Sequence[list[int]]) -> Tensor:
    """Return ℓ of each answer after the prompts in the cache, B; at most `LOGITS_AT_ONCE` tokens at a time."""
    tokens, real = _padded(answers, reading.logits.device)
    total, step = log_probabilities(reading.logits, tokens[:, 0]), max(1, LOGITS_AT_ONCE // len(answers))
    for start in range(0, tokens.shape[1] - 1, step):
        end = min(start + step, tokens.shape[1] - 1)
        logits = reading.advance(tokens[:, start:end])  # B x step x V; the logits after a token predict the next
        scores = log_probabilities(logits, tokens[:, start + 1 : end + 1])
        total = total + scores.where(real[:, start + 1 : end + 1], 0).sum(dim=1)
    return total


def without_cache(rows: Sequence[list[int]], answers: Sequence[list[int]], model: Module, pad: int) -> Tensor:
    """Return ℓ of each answer after its row by a decoder-only model, B, without a cache, padded on the right."""
    forward: Any = model
    whole = [row + answer for row, answer in zip(rows, answers, strict=True)]
    batch = Collator(pad)([{"input_ids": ids, "labels": ids} for ids in whole])
    input_ids, mask = (batch[name].to(device_of(model)) for name in ("input_ids", "attention_mask"))
    logits = forward(input_ids=input_ids, attention_mask=mask, **supported(model, use_cache=False)).logits
    tokens, real = _padded(answers, logits.device)
    starts = torch.tensor([len(row) for row in rows], device=logits.device)
    at = starts[:, None] + torch.arange(tokens.shape[1], device=logits.device)  # B x n
    at = at.clamp(max=input_ids.shape[1])  # behind a shorter answer
    row_index = torch.arange(len(rows), device=logits.device)[:, None]  # B x 1
    scores = log_probabilities(logits[row_index, at - 1], tokens)  # the logits before a token predict it
    return scores.where(real, 0).sum(dim=1)


def without_decoder_cache(encoded: ModelOutput, mask: Tensor, answers: Sequence[list[int]], model: Module) -> Tensor:
    """Return ℓ of each answer for the rows of an encoder's output, B, without a cache of the decoder."""
    forward: Any = model
    tokens, real = _padded(answers, mask.device)
    inputs = torch.cat([start_tokens(model, mask), tokens[:, :-1]], dim=1)
    logits = forward(**decoder_arguments(encoded, mask, inputs), use_cache=False).logits  # B x n x V
    return log_probabilities(logits, tokens).where(real, 0).sum(dim=1)


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log p of each token, of the shape of `tokens`; `logits` has one dimension more, V."""
    return log_softmax(logits).gather(-1, tokens[..., None])[..., 0]


def log_softmax(logits: Tensor) -> Tensor:
    """Return the log-softmax in at least float32: half precision has three digits, and labels may differ by less."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def _padded(answers: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the answers as one tensor, B x n, and where they have tokens, B x n, bool."""
    real = pad_right([[1] * len(answer) for answer in answers], 0)
    return pad_right(answers, FILLER).to(device), real.to(device).bool()
