"""What a loaded model does, found out on a few tokens: no configuration says it reliably."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


SHORT, LONG = 6, 11
"""Tokens of the two rows that are compared."""

SEEING = {torch.float32: 1e-4, torch.float64: 1e-4}
"""How far earlier logits may move, measured by the last ones. None of 62 kinds of decoders moved by more than 2e-7; an
encoder of one random layer moves by 6e-4, a trained one by far more."""

PADDING = {torch.float32: 1e-3, torch.float64: 1e-3}
"""How far logits may differ, in standard deviations. Of 77 kinds 75 differ by 3e-6 at most, two by 0.08 and 0.7."""

NARROW = {"seeing": 0.02, "padding": 0.1}
"""The same in bfloat16 and float16, where rounding alone is some per cent."""


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of sixteen tokens without a special meaning, at even distances over the vocabulary."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    plain = [index for index in range(len(tokenizer)) if index not in special] or list(range(len(tokenizer)))
    return [plain[place * len(plain) // 16] for place in range(16)]


@torch.no_grad()
def sees_later_tokens(model: PreTrainedModel, tokens: Sequence[int]) -> bool:
    """Whether a decoder's logits depend on tokens that come later, as an encoder's do.

    Such a model, trained to answer, would see the answer. The last token of a row is changed; the logits before it must
    not move.

    Args:
        model: Decoder alone, in eval mode.
        tokens: Of `ordinary_tokens`.
    """
    first = _row(tokens, LONG, model)
    second = first.clone()
    second[:, -1] = tokens[-1] if int(first[0, -1]) != tokens[-1] else tokens[0]
    moved = (model(first).logits - model(second).logits).abs().float()  # 1 x LONG x V
    return bool(moved[:, :-1].max() > SEEING.get(model.dtype, NARROW["seeing"]) * moved[:, -1].max())


@torch.no_grad()
def minds_padding(model: PreTrainedModel, tokens: Sequence[int], pad: int) -> bool:
    """Whether a row is answered otherwise when it is padded to the length of another, as in some recurrent models.

    A row is read alone and beside a longer one; what the model says next must be the same.

    Args:
        model: In eval mode; of both kinds.
        tokens: Of `ordinary_tokens`.
        pad: Id of the padding, which is masked.
    """
    left = not model.config.is_encoder_decoder
    short, long = _row(tokens, SHORT, model), _row(tokens[::-1], LONG, model)
    padding = torch.full_like(long[:, SHORT:], pad)
    padded = torch.cat([padding, short] if left else [short, padding], dim=1)
    hidden = torch.zeros_like(padding)
    mask = torch.cat([hidden, torch.ones_like(short)] if left else [torch.ones_like(short), hidden], dim=1)
    alone = _answer(model, short, torch.ones_like(short))
    beside = _answer(model, torch.cat([padded, long]), torch.cat([mask, torch.ones_like(long)]))
    return bool((alone - beside).abs().max() > PADDING.get(model.dtype, NARROW["padding"]) * alone.std())


def _row(tokens: Sequence[int], length: int, model: Any) -> Tensor:
    return torch.tensor([[tokens[place % len(tokens)] for place in range(length)]], device=model.device)


def _answer(model: Any, rows: Tensor, mask: Tensor) -> Tensor:
    """Logits behind the last token of the first row, V, float32; of an encoder-decoder those of its first tokens."""
    known, more = signature(model.forward).parameters, {}
    if model.config.is_encoder_decoder:
        more["decoder_input_ids"] = rows[:1, :3].expand(len(rows), 3)
    elif "position_ids" in known:
        more["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    if "use_cache" in known:
        more["use_cache"] = False
    return model(input_ids=rows, attention_mask=mask, **more).logits[0, -1].float()
