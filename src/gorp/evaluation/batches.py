"""How an evaluation goes through a model: its settings, eval mode, and batches of rows of like length."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gorp.data import Encoding, pad_left
from gorp.data.collate import pad_right
from gorp.errors import ModelError
from gorp.models.behaviour import minds_padding, ordinary_tokens
from gorp.ranges import COUNT, Range, check_ranges


Progress = Callable[[int, int], None]
"""Called after every batch with the rows done and the rows in all."""

MOST_ROWS = 100_000
"""Of a batch."""

LONGEST_ANSWER = 100_000
"""Tokens; a model that never ends an answer writes as many for every row."""

TOKENS_ON_CPU = 1024
"""Of a batch, prompts with their padding. With more, a layer's activations fall out of the processor's cache, and rows
of more lengths stand together: on SmolLM2-135M 3.7 ms a token at 50 x 64, 3.2 at 24 x 43 (one core)."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How tasks are scored.

    Raises:
        ConfigError: For a number outside its range.
    """

    batch_size: Annotated[int, Range(1, MOST_ROWS)] = 32
    """Most rows of a batch; on a CPU fewer where they are long. Changes the speed, not the answers."""
    max_new_tokens: Annotated[int, Range(1, LONGEST_ANSWER)] | None = None
    """Tokens an answer in free text may have, its end included; None: as many as `encoding.max_completion_tokens`."""
    limit: Annotated[int, COUNT] | None = None
    """Rows scored per task, drawn once for all, with answers mixed as in all; None: all."""

    def __post_init__(self) -> None:
        check_ranges(self)


def answer_limit(encoding: Encoding, config: EvalConfig) -> int:
    """How many tokens of an answer in free text are read, its end included."""
    return encoding.max_completion_tokens if config.max_new_tokens is None else config.max_new_tokens


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """No dropout and no gradients inside; afterwards every submodule is back in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def batches_by_length(
    rows: Sequence[Sequence[int]], batch_size: int, *, padded: bool = True, most_tokens: int | None = None
) -> Iterator[list[int]]:
    """The indices of `rows` in batches of like length, to pad little; of equal length where nothing may be padded.

    The longest come first, so that a batch too big for the memory fails at once.

    Args:
        rows: Token ids.
        batch_size: Most rows of a batch.
        padded: Whether rows of several lengths may stand in one batch.
        most_tokens: Of a batch with its padding; a row that is longer stands alone.
    """
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    groups = [order] if padded else [list(group) for _, group in groupby(order, key=lambda index: len(rows[index]))]
    for group in groups:
        while group:
            count = batch_size
            if most_tokens is not None:
                count = min(count, max(1, most_tokens // max(1, len(rows[group[0]]))))
            yield group[:count]
            group = group[count:]


def tokens_at_once(model: Module) -> int | None:
    """Most tokens of a batch: on a CPU, as many as leave its activations in the cache of the processor."""
    return TOKENS_ON_CPU if device_of(model).type == "cpu" else None


def can_be_padded(model: Module, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a row in a padded batch is answered as it would be alone. Tried once a model, on a few tokens.

    Some recurrent models (RWKV, RecurrentGemma) read their padding, masked or not.
    """
    inner = without_peft(model)
    if not isinstance(inner, PreTrainedModel):
        return True
    if inner not in _minding:
        with evaluating(model):
            _minding[inner] = minds_padding(inner, ordinary_tokens(tokenizer), pad_token_id(tokenizer))
    return not _minding[inner]


_minding: WeakKeyDictionary[Module, bool] = WeakKeyDictionary()


def is_encoder_decoder(model: Module) -> bool:
    """Whether `model` encodes the prompt and decodes the answer (T5), or continues the prompt (Llama)."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def device_of(model: Module) -> torch.device:
    """Where the model reads its inputs."""
    device: Any = model.device
    return device


def without_peft(model: Module) -> Any:
    """The transformers model inside a PEFT model, or the model itself."""
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def pad_rows(rows: Sequence[Sequence[int]], pad: int, *, encoder_decoder: bool) -> tuple[Tensor, Tensor]:
    """Put encoded prompts into one batch, so that a decoder goes on where each of them ends.

    Returns:
        `input_ids` and `attention_mask`, int64, B x S. Padding stands on the left for a decoder alone, on the right
        for an encoder, whose positions may be absolute.
    """
    if not encoder_decoder:
        return pad_left(rows, pad)
    return pad_right(rows, pad), pad_right([[1] * len(row) for row in rows], 0)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with: the tokenizer's own, or its eos if it has none. Padding is masked, so either does.

    Raises:
        ModelError: If the tokenizer has neither.
    """
    pad: Any = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if pad is None:
        raise ModelError("the tokenizer has neither a pad nor an eos token. Set `tokenizer.eos_token`.")
    return pad
