"""Settings of an evaluation, eval mode, and batches of rows of similar length."""

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
"""Called after every batch with (rows done, all rows)."""

MOST_ROWS = 100_000
"""Upper bound of `batch_size`."""

LONGEST_ANSWER = 100_000
"""Upper bound of `max_new_tokens`. A model that never ends an answer writes this many tokens for every row."""

TOKENS_ON_CPU = 1024
"""Most tokens of a batch on a CPU, prompts including padding. In larger batches a layer's activations do not fit into
the processor's cache, and rows of more different lengths are padded to the same one: on SmolLM2-135M 3.7 ms a token at
50 x 64, 3.2 at 24 x 43 (one core)."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Settings of scoring.

    Raises:
        ConfigError: If a number is outside its range.
    """

    batch_size: Annotated[int, Range(1, MOST_ROWS)] = 32
    """Most rows of a batch; on a CPU fewer if they are long. It changes the speed, not the answers."""
    max_new_tokens: Annotated[int, Range(1, LONGEST_ANSWER)] | None = None
    """Most tokens of an answer in free text, including its end; None for `encoding.max_completion_tokens`."""
    limit: Annotated[int, COUNT] | None = None
    """Most rows scored per task, always the same ones, stratified by the expected answer; None for all."""

    def __post_init__(self) -> None:
        check_ranges(self)


def answer_limit(encoding: Encoding, config: EvalConfig) -> int:
    """Return the most tokens that an answer in free text may have, including its end."""
    return encoding.max_completion_tokens if config.max_new_tokens is None else config.max_new_tokens


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Turn off dropout and gradients inside the context; restore the mode of every submodule afterwards.

    Parameters do not require gradients inside, whatever was trained before: torch multiplies by a weight that does with
    another kernel, also without a graph, and the last bits of the answers would differ.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with torch.no_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


def batches_by_length(
    rows: Sequence[Sequence[int]], batch_size: int, *, padded: bool = True, most_tokens: int | None = None
) -> Iterator[list[int]]:
    """Yield the indices of `rows` in batches of similar length, which need little padding.

    The longest rows come first, so that a batch that is too large for the memory fails at the start.

    Args:
        rows: Token ids.
        batch_size: Most rows of a batch.
        padded: Whether a batch may have rows of different lengths.
        most_tokens: Most tokens of a batch, including padding; a longer row is a batch of its own. None: no limit.
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
    """Return the most tokens of a batch: `TOKENS_ON_CPU` on a CPU, None (no limit) elsewhere."""
    return TOKENS_ON_CPU if device_of(model).type == "cpu" else None


def can_be_padded(model: Module, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model gives a row in a padded batch the same answer as alone. Tested once per model, on a few tokens.

    Some recurrent models (RWKV, RecurrentGemma) process padding even if it is masked.
    """
    inner = without_peft(model)
    if not isinstance(inner, PreTrainedModel):
        return True
    if inner not in _padding_matters:
        with evaluating(model):
            _padding_matters[inner] = minds_padding(inner, ordinary_tokens(tokenizer), pad_token_id(tokenizer))
    return not _padding_matters[inner]


_padding_matters: WeakKeyDictionary[Module, bool] = WeakKeyDictionary()


def is_encoder_decoder(model: Module) -> bool:
    """Whether `model` encodes the prompt and decodes the answer (T5) instead of continuing the prompt (Llama)."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def device_of(model: Module) -> torch.device:
    """Return the device on which the model expects its inputs."""
    device: Any = model.device
    return device


def without_peft(model: Module) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def pad_rows(rows: Sequence[Sequence[int]], pad: int, *, encoder_decoder: bool) -> tuple[Tensor, Tensor]:
    """Put encoded prompts into one batch, so that a decoder continues each of them at its end.

    Returns:
        `input_ids` and `attention_mask`, int64, B x S. Padding is on the left for a decoder-only model, and on the
        right for an encoder, which may have absolute positions.
    """
    if not encoder_decoder:
        return pad_left(rows, pad)
    return pad_right(rows, pad), pad_right([[1] * len(row) for row in rows], 0)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the tokenizer's padding id, or its eos if it has none. Padding is masked, so the id has no effect.

    Raises:
        ModelError: If the tokenizer has neither.
    """
    pad: Any = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if pad is None:
        raise ModelError("the tokenizer has neither a pad nor an eos token. Set `tokenizer.eos_token`.")
    return pad
