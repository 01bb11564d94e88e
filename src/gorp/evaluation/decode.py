"""Answer one batch of prompts greedily: from a cache, or by transformers' `generate`."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from gorp.evaluation.batches import device_of, is_encoder_decoder, pad_rows, without_peft
from gorp.evaluation.likelihood import log_probabilities, log_softmax
from gorp.evaluation.reading import Reading


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The answers to one batch of prompts."""

    ids: list[list[int]]
    """Tokens of every answer, with its end."""
    written: list[list[int]]
    """The same as `generate` returns them: with the start token, or padding behind the end."""
    scores: list[list[float]]
    """Log-probability of each token in nats; empty lists if it was not measured."""


def answer(reading: Reading, settings: GenerationConfig, *, measured: bool) -> Decoded:
    """Answer from the cache. Finished rows are removed from the batch.

    Args:
        reading: The model's state after the prompts; it is used up.
        settings: Greedy decoding.
        measured: Whether the log-probabilities are wanted.
    """
    answers: list[list[int]] = [[] for _ in reading.logits]
    chosen: list[list[float]] = [[] for _ in answers]
    unfinished, logits = list(range(len(answers))), reading.logits
    tokens = logits.argmax(dim=-1)  # B
    if reading.encoded is not None and settings.forced_bos_token_id is not None:
        tokens = torch.full_like(tokens, settings.forced_bos_token_id)
    ends = torch.tensor(settings.eos_token_id or [], dtype=tokens.dtype, device=tokens.device)
    while True:
        for row, token in zip(unfinished, tokens.tolist(), strict=True):
            answers[row].append(token)
        if measured:
            for row, score in zip(unfinished, log_probabilities(logits, tokens).tolist(), strict=True):
                chosen[row].append(score)
        kept = torch.isin(tokens, ends, invert=True).nonzero()[:, 0]
        if not len(kept) or len(answers[unfinished[0]]) == settings.max_new_tokens:
            return Decoded(ids=answers, written=answers, scores=chosen)
        if len(kept) < len(unfinished):
            reading.keep(kept)
            unfinished, tokens = [unfinished[position] for position in kept.tolist()], tokens[kept]
        logits = reading.advance(tokens[:, None])[:, -1]
        tokens = logits.argmax(dim=-1)


def answer_with_generate(
    rows: list[list[int]], model: Module, pad: int, settings: GenerationConfig, *, measured: bool
) -> Decoded:
    """Answer with transformers' `generate`, for a model with its own kind of cache, such as a recurrent model."""
    generate: Any = model.generate
    encoder_decoder, steps = is_encoder_decoder(model), _Steps()
    input_ids, attention_mask = (
        part.to(device_of(model)) for part in pad_rows(rows, pad, encoder_decoder=encoder_decoder)
    )
    recorded: Any = {"logits_processor": LogitsProcessorList([steps])} if measured else {}
    with _replaced_settings(without_peft(model), settings):
        output: Tensor = generate(
            input_ids=input_ids, attention_mask=attention_mask, generation_config=settings, **recorded
        )
    # The output of a decoder-only model begins with the prompt, that of an encoder-decoder with the start token.
    written = (output if encoder_decoder else output[:, input_ids.shape[1] :]).tolist()
    ends = set(settings.eos_token_id or [])
    ids = [_up_to_end(row[1:] if encoder_decoder else row, ends) for row in written]
    scores = [list(of) for of in zip(*steps.scores, strict=True)] or [[] for _ in ids]  # steps x B -> B x steps
    return Decoded(ids=ids, written=written, scores=[of[: len(row)] for row, of in zip(ids, scores, strict=True)])


def _up_to_end(ids: list[int], ends: Collection[int]) -> list[int]:
    return ids[: next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))]


class _Steps(LogitsProcessor):
    """Records the log-probability of the most probable token at each step of `generate`, and changes nothing."""

    def __init__(self) -> None:
        self.scores: list[list[float]] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.scores.append(log_softmax(scores).amax(dim=-1).tolist())
        return scores


@contextmanager
def _replaced_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Replace the model's stored settings inside the context; `generate` would take every unset value from them."""
    stored = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = stored
