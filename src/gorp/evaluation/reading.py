"""Prompts as a model holds them after reading: from here generation and ranking go on."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.utils.generic import ModelOutput

from gorp.errors import ModelError
from gorp.evaluation.batches import device_of, pad_rows, without_peft


SHARED_AT_LEAST = 8
"""Tokens with which all rows of a batch must begin to be read by themselves: a pass of its own costs as much."""

DOES_NOT_GO_ON = (AssertionError, NotImplementedError, ValueError)
"""What a decoder raises that takes only one token behind its cache, as ProphetNet's: it refuses, nothing is broken."""


@dataclass
class Reading:
    """B prompts as the model holds them after reading, ready to go on with any answer."""

    model: Module
    logits: Tensor  # B x V, for the answer's first token
    cache: Cache
    mask: Tensor  # B x S: of the encoder's tokens, or of all tokens in the cache
    encoded: ModelOutput | None  # of the encoder; None for a decoder alone

    def go_on(self, tokens: Tensor) -> Tensor:
        """Logits behind each of n further tokens, B x n -> B x n x V; the cache then holds them."""
        forward: Any = self.model
        if self.encoded is not None:
            inputs = behind_encoder(self.encoded, self.mask, tokens)
        else:
            positions = self.mask.sum(dim=1, keepdim=True) + torch.arange(tokens.shape[1], device=tokens.device)
            self.mask = torch.cat([self.mask, torch.ones_like(tokens)], dim=1)
            inputs = {
                "input_ids": tokens,
                "attention_mask": self.mask,
                **understood(self.model, position_ids=positions),
            }
        return forward(**inputs, past_key_values=self.cache, use_cache=True).logits

    def go_back(self, count: int) -> None:
        """Take the last `count` tokens off again."""
        self.cache.crop(-count)
        if self.encoded is None:
            self.mask = self.mask[:, :-count]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch alone."""
        self.cache.reorder_cache(cast(torch.LongTensor, rows))
        self.mask = self.mask[rows]
        if self.encoded is not None:
            self.encoded = type(self.encoded)(last_hidden_state=self.encoded["last_hidden_state"][rows])


def read_by_decoder(model: Module, rows: Sequence[list[int]], pad: int) -> Reading | None:
    """Let a decoder read prompts; None where it keeps nothing that a token could be taken off again.

    What all rows begin with is read once, P tokens. In the batch, padded on the left to S columns, the first P
    columns hold nothing but padding and tokens of that beginning; their keys and values are gathered from the one
    reading, and only the other S - P columns go through the model. The cache is the one that the whole batch has.
    """
    input_ids, mask = (part.to(device_of(model)) for part in pad_rows(rows, pad, encoder_decoder=False))
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # padding stands on the left and has no position
    alike = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))
    shared = min(alike, min(len(row) for row in rows) - 1)  # every row has a last token to read
    begun = None
    if len(rows) > 1 and shared >= SHARED_AT_LEAST:
        begun = _read_once(model, input_ids.new_tensor([rows[0][:shared]]), positions[:, :shared])
    if begun is not None:
        try:
            return _read(model, input_ids[:, shared:], mask, positions[:, shared:], past_key_values=begun)
        except DOES_NOT_GO_ON:
            pass
    return _read(model, input_ids, mask, positions)


def _read_once(model: Module, beginning: Tensor, positions: Tensor) -> Cache | None:
    """The cache of B rows at `positions`, B x P, of a beginning, 1 x P; None where it is more than keys and values."""
    mask = torch.ones_like(beginning)
    reading = _read(model, beginning, mask, mask.cumsum(dim=1) - 1)
    if reading is None or any(type(layer) is not DynamicLayer for layer in reading.cache.layers):
        return None
    for layer in cast(list[DynamicLayer], reading.cache.layers):
        if layer.keys is not None and layer.values is not None:  # a layer may use those of another
            layer.keys = layer.keys[0][:, positions].transpose(0, 1)  # heads x B x P x d -> B x heads x P x d
            layer.values = layer.values[0][:, positions].transpose(0, 1)
    return reading.cache


def _read(model: Module, input_ids: Tensor, mask: Tensor, positions: Tensor, **past: Any) -> Reading | None:
    forward: Any = model
    extra = understood(model, position_ids=positions, logits_to_keep=1)
    output = forward(input_ids=input_ids, attention_mask=mask, use_cache=True, **extra, **past)
    cache = getattr(output, "past_key_values", None)
    if not isinstance(cache, Cache) or not cache.is_croppable:
        return None
    return Reading(model, output.logits[:, -1], cache, mask, None)


def read_behind_encoder(model: Module, encoded: ModelOutput, mask: Tensor) -> Reading | None:
    """Let the decoder read its start token; None where it keeps nothing that a token could be taken off again."""
    forward: Any = model
    output = forward(**behind_encoder(encoded, mask, start_tokens(model, mask)), use_cache=True)
    cache = output.past_key_values
    if not isinstance(cache, Cache) or not cache.is_croppable:
        return None
    return Reading(model, output.logits[:, -1], cache, mask, encoded)


def encode(model: Module, rows: Sequence[list[int]], pad: int) -> tuple[ModelOutput, Tensor]:
    """The encoder's output for prompts, and their mask; asked by itself, since some encoders refuse `use_cache`."""
    inner: Any = without_peft(model)
    input_ids, mask = (part.to(device_of(model)) for part in pad_rows(rows, pad, encoder_decoder=True))
    return inner.get_encoder()(input_ids=input_ids, attention_mask=mask, return_dict=True), mask


def behind_encoder(encoded: ModelOutput, mask: Tensor, tokens: Tensor) -> dict[str, Any]:
    """What a model with an encoder is called with where its encoder need not run again."""
    return {"encoder_outputs": encoded, "attention_mask": mask, "decoder_input_ids": tokens}


def start_tokens(model: Module, mask: Tensor) -> Tensor:
    """The token that every answer of a decoder behind an encoder follows, B x 1.

    Raises:
        ModelError: If the model has none.
    """
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise ModelError("config.decoder_start_token_id is not set, so the decoder cannot begin. Set it on the model.")
    return torch.full_like(mask[:, :1], start)


def understood(model: Module, **arguments: Any) -> dict[str, Any]:
    """Those of `arguments` that the model's own forward names; PEFT hands them through to it."""
    known = signature(without_peft(model).forward).parameters
    return {name: value for name, value in arguments.items() if name in known}
