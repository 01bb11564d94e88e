"""How long a row a model can read at all: learned or tabulated positions end, rotary and relative ones go on."""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn


POSITIONS = re.compile(r"wpe|(\w+_)?positions?(_\w+)?")
"""Names of the embeddings of positions in transformers: wpe, embed_positions, position_embeddings, positions_embed."""

TABULATED = {"mpt": "max_seq_len", "gptj": "n_positions", "codegen": "n_positions", "ctrl": "n_positions"}
"""Kinds of models that compute a table of positions of a fixed length -> the field of their configuration."""


@dataclass(frozen=True, kw_only=True)
class Positions:
    """The most tokens that a model can read; None where nothing ends."""

    prompt: int | None
    """Of a prompt, in the encoder; of a prompt and its answer, in a decoder alone."""
    answer: int | None
    """Of an answer, in an encoder-decoder; None in a decoder alone."""


def positions_of(model: nn.Module) -> Positions:
    """The limits of `model`, from its embeddings of positions."""
    config: Any = model.config
    limits: dict[bool, int] = {}  # whether in the decoder -> the least
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding) and POSITIONS.fullmatch(name.rpartition(".")[2]):
            # OPT and BART leave the first two rows unused, RoBERTa's kind those up to that of the padding.
            unused = 0 if layer.padding_idx is None else layer.padding_idx + 1
            size = layer.num_embeddings - getattr(layer, "offset", unused)
            inside = bool(config.is_encoder_decoder) and "encoder" not in name.split(".")
            limits[inside] = min(size, limits.get(inside, size))
    if config.model_type in TABULATED:
        limits[False] = getattr(config, TABULATED[config.model_type])
    return Positions(prompt=limits.get(False), answer=limits.get(True))


def trained_length(model: nn.Module) -> int | None:
    """The longest row that the model was trained with, as its configuration says; None where it says nothing."""
    config: Any = model.config
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None
