"""Run prompts through a model and keep the cache, from which generation and ranking continue."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from inspect import signature
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module
from transformers import Cache
from transformers.cache_utils import DynamicLayer, EncoderDecoderCache
from transformers.utils.generic import ModelOutput

from gorp.errors import ModelError
from gorp.evaluation.batches import device_of, pad_rows, without_peft


MIN_SHARED = 8
"""Least tokens of a beginning that all rows of a batch share, for it to be computed separately; less is not worth the
additional pass."""

UNSUPPORTED_CACHE = (AssertionError, NotImplementedError, ValueError)
"""Errors of decoders that accept only one token after their cache, such as ProphetNet's. The uncached way still works.
"""


@dataclass
class Reading:
    """State of a model that has processed B prompts, ready to continue with answers."""

    model: Module
    logits: Tensor  # B x V, for the first token of the answer
    cache: Cache
    mask: Tensor  # B x S: of the encoder's tokens, or of all tokens in the cache
    encoded: ModelOutput | None  # the encoder's output; None for a decoder-only model

    def advance(self, tokens: Tensor) -> Tensor:
        """Process n more tokens, B x n, add them to the cache, and return the logits after each, B x n x V."""
        forward: Any = self.model
        if self.encoded is not None:
            inputs = decoder_arguments(self.encoded, self.mask, tokens)
        else:
            positions = self.mask.sum(dim=1, keepdim=True) + torch.arange(tokens.shape[1], device=tokens.device)
            self.mask = torch.cat([self.mask, torch.ones_like(tokens)], dim=1)
            inputs = {
                "input_ids": tokens,
                "attention_mask": self.mask,
                **supported(self.model, position_ids=positions),
            }
        return forward(**inputs, **_given(self.model, self.cache), use_cache=True).logits

    def rewind(self, count: int) -> None:
        """Remove the last `count` tokens from the cache."""
        self.cache.crop(-count)
        if self.encoded is None:
            self.mask = self.mask[:, :-count]

    def branch(self) -> "Reading | None":
        """Return a second reading that is continued on its own; until then it shares all tensors with this one.

        None if a layer of the cache changes its tensors in place, as convolutions do.
        """
        caches = [self.cache]
        if isinstance(self.cache, EncoderDecoderCache):
            caches = [self.cache.self_attention_cache, self.cache.cross_attention_cache]
        if not all(isinstance(layer, DynamicLayer) for cache in caches for layer in cache.layers):
            return None
        copies = [copy(cache) for cache in caches]
        for cache in copies:
            cache.layers = [copy(layer) for layer in cache.layers]
        return replace(self, cache=copies[0] if len(copies) == 1 else EncoderDecoderCache(*copies))

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        self.cache.reorder_cache(cast(torch.LongTensor, rows))
        self.mask, self.logits = self.mask[rows], self.logits[rows]
        if self.encoded is not None:
            self.encoded = type(self.encoded)(last_hidden_state=self.encoded["last_hidden_state"][rows])


def read_by_decoder(model: Module, rows: Sequence[list[int]], pad: int) -> Reading | None:
    """Run prompts through a decoder-only model. Return None if tokens cannot be removed from its cache again.

    If all rows begin with the same P tokens, these are computed once. In the batch, padded on the left to S columns,
    the first P columns contain only padding and tokens of this beginning. Their keys and values are gathered from the
    single pass, and only the other S - P columns go through the model. The resulting cache equals that of the whole
    batch.
    """
    input_ids, mask = (part.to(device_of(model)) for part in pad_rows(rows, pad, encoder_decoder=False))
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # padding is on the left and is not counted
    equal = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))
    shared = min(equal, min(len(row) for row in rows) - 1)  # leave the last token of every row for the second pass
    cache = None
    if len(rows) > 1 and shared >= MIN_SHARED:
        cache = _read_shared(model, input_ids.new_tensor([rows[0][:shared]]), positions[:, :shared])
    if cache is not None:
        try:
            return _read(model, input_ids[:, shared:], mask, positions[:, shared:], **_given(model, cache))
        except UNSUPPORTED_CACHE:
            pass
    return _read(model, input_ids, mask, positions)


def _read_shared(model: Module, beginning: Tensor, positions: Tensor) -> Cache | None:
    """Compute a shared beginning, 1 x P, once and return its cache gathered for B rows at `positions`, B x P.

    Returns None if the cache has more than keys and values.
    """
    mask = torch.ones_like(beginning)
    reading = _read(model, beginning, mask, mask.cumsum(dim=1) - 1)
    if reading is None or any(type(layer) is not DynamicLayer for layer in reading.cache.layers):
        return None
    for layer in cast(list[DynamicLayer], reading.cache.layers):
        if layer.keys is not None and layer.values is not None:  # some layers reuse those of another layer
            layer.keys = layer.keys[0][:, positions].transpose(0, 1)  # heads x B x P x d -> B x heads x P x d
            layer.values = layer.values[0][:, positions].transpose(0, 1)
    return reading.cache


def _read(model: Module, input_ids: Tensor, mask: Tensor, positions: Tensor, **past: Any) -> Reading | None:
    forward: Any = model
    extra = supported(model, position_ids=positions, logits_to_keep=1)
    output = forward(input_ids=input_ids, attention_mask=mask, use_cache=True, **extra, **past)
    cache = getattr(output, "past_key_values", None)
    if not isinstance(cache, Cache) or not cache.is_croppable:
        return None
    return Reading(model, output.logits[:, -1], cache, mask, None)


def _given(model: Module, cache: Cache) -> dict[str, Cache]:
    """Return the argument that gives a model its cache; transformers 5.24 renamed it."""
    return supported(model, cache=cache) or {"past_key_values": cache}


def read_start_token(model: Module, encoded: ModelOutput, mask: Tensor) -> Reading | None:
    """Run the start token through an encoder-decoder's decoder. None if tokens cannot be removed from its cache."""
    forward: Any = model
    output = forward(**decoder_arguments(encoded, mask, start_tokens(model, mask)), use_cache=True)
    cache = output.past_key_values
    if not isinstance(cache, Cache) or not cache.is_croppable:
        return None
    return Reading(model, output.logits[:, -1], cache, mask, encoded)


def encode(model: Module, rows: Sequence[list[int]], pad: int) -> tuple[ModelOutput, Tensor]:
    """Return the encoder's output for prompts, and their mask. It runs separately: some encoders refuse `use_cache`."""
    inner: Any = without_peft(model)
    input_ids, mask = (part.to(device_of(model)) for part in pad_rows(rows, pad, encoder_decoder=True))
    return inner.get_encoder()(input_ids=input_ids, attention_mask=mask, return_dict=True), mask


def decoder_arguments(encoded: ModelOutput, mask: Tensor, tokens: Tensor) -> dict[str, Any]:
    """Return arguments for an encoder-decoder that reuse the encoder's output."""
    return {"encoder_outputs": encoded, "attention_mask": mask, "decoder_input_ids": tokens}


def start_tokens(model: Module, mask: Tensor) -> Tensor:
    """Return the token with which the decoder of an encoder-decoder starts, B x 1.

    Raises:
        ModelError: If the model has none.
    """
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise ModelError(
            "config.decoder_start_token_id is not set, so the decoder cannot start. Set it in the model's config."
        )
    return torch.full_like(mask[:, :1], start)


def supported(model: Module, **arguments: Any) -> dict[str, Any]:
    """Return those of `arguments` that the forward of the model inside PEFT accepts; PEFT passes them on."""
    known = signature(without_peft(model).forward).parameters
    return {name: value for name, value in arguments.items() if name in known}
