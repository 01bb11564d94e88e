"""Put rows of token ids into batches: padded on the right for training, on the left for generation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gorp.core.outputs import IGNORED


@dataclass(frozen=True)
class Collator:
    """Put encoded rows into one batch, padded on the right.

    Called with a list of rows, it returns int64 tensors: `input_ids` and `attention_mask`, B x L, and `labels`, B x L
    for decoders and B x (length of the longest answer) for encoder-decoders.
    """

    pad_token_id: int
    """Padding value of `input_ids`; it is masked, so it has no effect."""

    def __call__(self, features: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Return the batch of `features`, rows with `input_ids` and `labels`."""
        inputs = [list(row["input_ids"]) for row in features]
        labels = [list(row["labels"]) for row in features]
        return {
            "input_ids": pad_right(inputs, self.pad_token_id),
            "attention_mask": pad_right([[1] * len(ids) for ids in inputs], 0),
            "labels": pad_right(labels, IGNORED),
        }


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return prompts as one batch, padded on the left, so that a decoder continues each of them at its end.

    Returns:
        `input_ids` and `attention_mask`, both int64, B x L with L the longest row.
    """
    longest = max(len(row) for row in rows)
    ids = [[pad_token_id] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def pad_right(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Return rows as one int64 tensor, B x L with L the longest row; shorter rows end in `filler`."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])
