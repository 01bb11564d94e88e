"""How likely a model finds each label of a closed set: the prompt is read once, every label is tried after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import Cache, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from gorp.data import Encoding, encode_completion, encode_prompts
from gorp.errors import DataError, ModelError
from gorp.evaluation.batches import (
    EvalConfig,
    Progress,
    batches_by_length,
    device_of,
    evaluating,
    is_encoder_decoder,
    pad_rows,
    pad_token_id,
    without_peft,
)


def rank_labels(
    model: Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    labels: Sequence[str],
    *,
    encoding: Encoding,
    config: EvalConfig,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """The log-likelihood of every label after every prompt.

        ℓ(label) = Σₜ log p(yₜ | prompt, y₁ … yₜ₋₁)        y: the label's tokens and eos, as in training

    It is the sum, not the mean per token. With eos in it, exp ℓ is the probability that the model, sampling freely,
    answers with exactly this label; so a long label needs no correction, and a label that begins another gains nothing.

    A prompt goes through the model once, whatever the number of labels. The labels follow one after the other, on top
    of the keys and values cached for the prompt, so memory does not grow with their number.

    Args:
        model: A transformers model with a key-value cache, or a PEFT model around one.
        tokenizer: The model's tokenizer.
        prompts: Rendered text, any number of rows.
        labels: At least one, each once.
        encoding: Limits the tokens of a prompt, as in training.
        config: Batch size, counted in prompts; `limit` is not used here.
        progress: Called with (rows done, rows in all) after every batch.

    Returns:
        For each prompt, in the order given: label -> ℓ in nats, labels in the order given.

    Raises:
        DataError: If there are no labels or one occurs twice.
        ModelError: If the model has no decoder start token, or keeps no cache that can be rewound.
    """
    if not labels or len(set(labels)) < len(labels):
        raise DataError(f"labels: got {list(labels)}; wanted at least one, each once. Correct the task's label set.")
    encoder_decoder = is_encoder_decoder(model)
    rows = encode_prompts(prompts, tokenizer, encoder_decoder=encoder_decoder, encoding=encoding)
    ranked: list[dict[str, float]] = [{}] * len(rows)
    done = 0
    with evaluating(model):
        for prompt, members in _by_ending(prompts).values():
            answers = [
                encode_completion(label, tokenizer, prompt=prompt, encoder_decoder=encoder_decoder) for label in labels
            ]
            for batch in batches_by_length([rows[index] for index in members], config.batch_size):
                indices = [members[position] for position in batch]
                scores = _score([rows[index] for index in indices], answers, model, pad_token_id(tokenizer))
                for index, line in zip(indices, scores.tolist(), strict=True):
                    ranked[index] = dict(zip(labels, line, strict=True))
                done += len(indices)
                if progress is not None:
                    progress(done, len(rows))
    return ranked


def _by_ending(prompts: Sequence[str]) -> dict[bool, tuple[str, list[int]]]:
    """Prompts that end in a blank, and those that do not: an example and the indices. A label's tokens differ there."""
    groups: dict[bool, tuple[str, list[int]]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(not prompt[-1:].strip(), (prompt, []))[1].append(index)
    return groups


def _score(rows: list[list[int]], answers: list[list[int]], model: Module, pad: int) -> Tensor:
    """ℓ of every answer after every row, B x len(answers)."""
    encoder_decoder = is_encoder_decoder(model)
    input_ids, mask = (part.to(device_of(model)) for part in pad_rows(rows, pad, encoder_decoder=encoder_decoder))
    read = (_read_by_encoder if encoder_decoder else _read_by_decoder)(model, input_ids, mask)
    first = _log_softmax(read.logits)  # B x V
    columns = []
    for answer in answers:
        column = first[:, answer[0]]
        if len(answer) > 1:
            tokens = torch.tensor(answer, device=device_of(model))
            following = _log_softmax(read.go_on(tokens[:-1]))  # B x (n - 1) x V
            column = column + following[:, torch.arange(len(answer) - 1), tokens[1:]].sum(dim=1)
        columns.append(column)
    return torch.stack(columns, dim=1)


@dataclass(frozen=True)
class _Read:
    """B prompts as the model holds them after reading, ready to go on with any answer."""

    model: Module
    logits: Tensor  # B x V, for the answer's first token
    cache: Cache
    mask: Tensor  # B x S
    encoded: Tensor | None  # B x S x d, the encoder's output; None for a decoder alone

    def go_on(self, tokens: Tensor) -> Tensor:
        """Logits behind each of the n `tokens`, the same for every prompt, B x n x V; the cache is left as it was."""
        batch, count = len(self.mask), len(tokens)
        forward: Any = self.model
        tokens = tokens.expand(batch, count)
        if self.encoded is not None:
            inputs = {
                "encoder_outputs": BaseModelOutput(last_hidden_state=self.encoded),
                "attention_mask": self.mask,
                "decoder_input_ids": tokens,
            }
        else:
            positions = self.mask.sum(dim=1, keepdim=True) + torch.arange(count, device=tokens.device)
            inputs = {
                "input_ids": tokens,
                "attention_mask": torch.cat([self.mask, torch.ones_like(tokens)], dim=1),
                **_understood(self.model, position_ids=positions),
            }
        logits = forward(**inputs, past_key_values=self.cache, use_cache=True).logits
        self.cache.crop(-count)
        return logits


def _read_by_decoder(model: Module, input_ids: Tensor, mask: Tensor) -> _Read:
    forward: Any = model
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # padding stands on the left and has no position
    extra = _understood(model, position_ids=positions, logits_to_keep=1)
    output = forward(input_ids=input_ids, attention_mask=mask, use_cache=True, **extra)
    return _Read(model, output.logits[:, -1], _cache(output), mask, None)


def _read_by_encoder(model: Module, input_ids: Tensor, mask: Tensor) -> _Read:
    forward: Any = model
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise ModelError("config.decoder_start_token_id is not set, so the decoder cannot begin. Set it on the model.")
    first = torch.full_like(input_ids[:, :1], start)
    output = forward(input_ids=input_ids, attention_mask=mask, decoder_input_ids=first, use_cache=True)
    return _Read(model, output.logits[:, -1], _cache(output), mask, output.encoder_last_hidden_state)


def _cache(output: Any) -> Cache:
    cache = output.past_key_values
    if not isinstance(cache, Cache):
        raise ModelError(
            f"the model returned {type(cache).__name__} for past_key_values; wanted a transformers cache, to try every"
            " label after one reading of the prompt. Score this task with metric `exact_match`."
        )
    return cache


def _understood(model: Module, **arguments: Any) -> dict[str, Any]:
    """Those of `arguments` that the model's own forward names; PEFT hands them through to it."""
    known = signature(without_peft(model).forward).parameters
    return {name: value for name, value in arguments.items() if name in known}


def _log_softmax(logits: Tensor) -> Tensor:
    """In float32 at least: half precision has three digits, and labels differ by less."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
