"""The longest row that a model can read: learned or tabulated positions have a limit, rotary and relative ones none."""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn


POSITIONS = re.compile(r"wpe|(\w+_)?positions?(_\w+)?")
"""Names of position embeddings in transformers: wpe, embed_positions, position_embeddings, positions_embed."""

TABULATED = {"mpt": "max_seq_len", "gptj": "n_positions", "codegen": "n_positions", "ctrl": "n_positions"}
"""Model type that computes a position table of fixed length -> the field of its configuration with that length."""


@dataclass(frozen=True, kw_only=True)
class Positions:
    """The largest number of tokens that a model can read; None means no limit."""

    prompt: int | None
    """Limit of the prompt in an encoder-decoder; limit of prompt and answer together in a decoder-only model."""
    answer: int | None
    """Limit of the answer in an encoder-decoder; None in a decoder-only model."""


def positions_of(model: nn.Module) -> Positions:
    """Return the limits of `model`, from its position embeddings."""
    config: Any = model.config
    limits: dict[bool, int] = {}  # whether in the decoder of an encoder-decoder -> the smallest size
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding) and POSITIONS.fullmatch(name.rpartition(".")[2]):
            # OPT and BART do not use the first two rows; RoBERTa's kind does not use those up to the padding index.
            unused = 0 if layer.padding_idx is None else layer.padding_idx + 1
            size = layer.num_embeddings - getattr(layer, "offset", unused)
            in_decoder = bool(config.is_encoder_decoder) and "encoder" not in name.split(".")
            limits[in_decoder] = min(size, limits.get(in_decoder, size))
    if config.model_type in TABULATED:
        limits[False] = getattr(config, TABULATED[config.model_type])
    return Positions(prompt=limits.get(False), answer=limits.get(True))


def trained_length(model: nn.Module) -> int | None:
    """Return the length of the longest row that the model was trained on, or None if its configuration has none."""
    config: Any = model.config
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None
