"""How likely a model finds each label of a closed set: the prompt is read once, every label is tried after it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import Cache, PreTrainedTokenizerBase
from transformers.utils.generic import ModelOutput

from gorp.data import PLAIN, Collator, Encoding, Form, encode_completions, encode_prompts
from gorp.data.encode import places
from gorp.errors import DataError, ModelError
from gorp.evaluation.batches import (
    EvalConfig,
    Progress,
    batches_by_length,
    can_be_padded,
    device_of,
    evaluating,
    is_encoder_decoder,
    pad_rows,
    pad_token_id,
    without_peft,
)


DOES_NOT_GO_ON = (AssertionError, NotImplementedError, ValueError)
"""What a decoder raises that takes only one token behind its cache, as ProphetNet's: it refuses, nothing is broken."""


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
    done, padded = 0, can_be_padded(model, tokenizer)
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
            for batch in batches_by_length([rows[index] for index in members], config.batch_size, padded=padded):
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
    encoder_decoder = is_encoder_decoder(model)
    input_ids, mask = (part.to(device_of(model)) for part in pad_rows(rows, pad, encoder_decoder=encoder_decoder))
    if not encoder_decoder:
        read = _read_by_decoder(model, input_ids, mask)
        if read is not None:
            return _score_after(read, answers)
        return torch.stack([_score_whole(rows, answer, model, pad) for answer in answers], dim=1)
    encoded = _encode(model, input_ids, mask)
    try:
        read = _read_by_encoder(model, encoded, mask)
        if read is not None:
            return _score_after(read, answers)
    except DOES_NOT_GO_ON:
        pass
    return torch.stack([_score_behind_encoder(encoded, mask, answer, model) for answer in answers], dim=1)


def _score_after(read: "_Read", answers: list[list[int]]) -> Tensor:
    """ℓ of every answer after the prompts that were read, B x len(answers)."""
    first = _log_softmax(read.logits)  # B x V
    columns = []
    for answer in answers:
        column = first[:, answer[0]]
        if len(answer) > 1:
            tokens = torch.tensor(answer, device=first.device)
            following = _log_softmax(read.go_on(tokens[:-1]))  # B x (n - 1) x V
            column = column + following[:, torch.arange(len(answer) - 1), tokens[1:]].sum(dim=1)
        columns.append(column)
    return torch.stack(columns, dim=1)


def _score_whole(rows: list[list[int]], answer: list[int], model: Module, pad: int) -> Tensor:
    """ℓ of one answer after every row of a decoder, B, without a cache; padding stands on the right, as in training."""
    forward: Any = model
    batch = Collator(pad)([{"input_ids": row + answer, "labels": row + answer} for row in rows])
    input_ids, mask = (batch[name].to(device_of(model)) for name in ("input_ids", "attention_mask"))
    logits = forward(input_ids=input_ids, attention_mask=mask, **_understood(model, use_cache=False)).logits
    starts = torch.tensor([len(row) for row in rows], device=logits.device)
    at = starts[:, None] + torch.arange(len(answer), device=logits.device)  # B x n
    rows_ = torch.arange(len(rows), device=logits.device)[:, None]
    scores = _log_softmax(logits[rows_, at - 1])  # B x n x V
    return scores.gather(2, input_ids.gather(1, at)[..., None])[..., 0].sum(dim=1)


def _score_behind_encoder(encoded: ModelOutput, mask: Tensor, answer: list[int], model: Module) -> Tensor:
    """ℓ of one answer after every row of an encoder's output, B, without a cache of the decoder's."""
    forward: Any = model
    tokens = torch.tensor(answer, device=mask.device).expand(len(mask), -1)  # B x n
    inputs = torch.cat([_start(model, mask), tokens[:, :-1]], dim=1)
    logits = forward(**_behind_encoder(encoded, mask, inputs), use_cache=False).logits  # B x n x V
    return _log_softmax(logits).gather(2, tokens[..., None])[..., 0].sum(dim=1)


@dataclass(frozen=True)
class _Read:
    """B prompts as the model holds them after reading, ready to go on with any answer."""

    model: Module
    logits: Tensor  # B x V, for the answer's first token
    cache: Cache
    mask: Tensor  # B x S
    encoded: ModelOutput | None  # of the encoder; None for a decoder alone

    def go_on(self, tokens: Tensor) -> Tensor:
        """Logits behind each of the n `tokens`, the same for every prompt, B x n x V; the cache is left as it was."""
        batch, count = len(self.mask), len(tokens)
        forward: Any = self.model
        tokens = tokens.expand(batch, count)
        if self.encoded is not None:
            inputs = _behind_encoder(self.encoded, self.mask, tokens)
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


def _read_by_decoder(model: Module, input_ids: Tensor, mask: Tensor) -> _Read | None:
    """None where the model keeps nothing that a label could be taken off again."""
    forward: Any = model
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # padding stands on the left and has no position
    extra = _understood(model, position_ids=positions, logits_to_keep=1)
    output = forward(input_ids=input_ids, attention_mask=mask, use_cache=True, **extra)
    cache = getattr(output, "past_key_values", None)
    if not isinstance(cache, Cache) or not cache.is_croppable:
        return None
    cache.activate_past_recording()  # a sliding window keeps what a label pushes out of it
    return _Read(model, output.logits[:, -1], cache, mask, None)


def _read_by_encoder(model: Module, encoded: ModelOutput, mask: Tensor) -> _Read | None:
    """None where the decoder keeps nothing that a label could be taken off again."""
    forward: Any = model
    output = forward(**_behind_encoder(encoded, mask, _start(model, mask)), use_cache=True)
    cache = output.past_key_values
    if not isinstance(cache, Cache) or not cache.is_croppable:
        return None
    cache.activate_past_recording()
    return _Read(model, output.logits[:, -1], cache, mask, encoded)


def _encode(model: Module, input_ids: Tensor, mask: Tensor) -> ModelOutput:
    """The encoder's output for the prompts; asked by itself, since some encoders refuse the word `use_cache`."""
    inner: Any = without_peft(model)
    return inner.get_encoder()(input_ids=input_ids, attention_mask=mask, return_dict=True)


def _behind_encoder(encoded: ModelOutput, mask: Tensor, tokens: Tensor) -> dict[str, Any]:
    return {"encoder_outputs": encoded, "attention_mask": mask, "decoder_input_ids": tokens}


def _start(model: Module, mask: Tensor) -> Tensor:
    """The token that every answer of a decoder behind an encoder follows, B x 1."""
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise ModelError("config.decoder_start_token_id is not set, so the decoder cannot begin. Set it on the model.")
    return torch.full_like(mask[:, :1], start)


def _understood(model: Module, **arguments: Any) -> dict[str, Any]:
    """Those of `arguments` that the model's own forward names; PEFT hands them through to it."""
    known = signature(without_peft(model).forward).parameters
    return {name: value for name, value in arguments.items() if name in known}


def _log_softmax(logits: Tensor) -> Tensor:
    """In float32 at least: half precision has three digits, and labels differ by less."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
