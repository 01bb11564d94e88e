"""Span corruption: the training signal of T5.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
section 3.1.4.
"""

from dataclasses import dataclass

import numpy as np

from scripts.pretrain.tokenizer import EOS_ID, FIRST_SENTINEL, SENTINELS


@dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Removes spans of tokens from windows of text; the decoder gives them back.

    All windows have the same number of removed tokens and spans, so every batch has the same shape and no padding.
    """

    window: int = 288
    """Tokens of text taken at a time."""
    density: float = 0.2
    """Share of removed tokens."""
    mean_span: float = 3.0
    """Mean length of a removed span, in tokens."""

    def __post_init__(self) -> None:
        """Refuse more spans than there are sentinels.

        Raises:
            ValueError: The window is too long.
        """
        if self.spans > len(SENTINELS):
            raise ValueError(f"{self.spans} spans per window, but {len(SENTINELS)} sentinels; shorten the window.")

    @property
    def removed(self) -> int:
        """Number of removed tokens per window."""
        return max(1, round(self.window * self.density))

    @property
    def spans(self) -> int:
        """Number of removed spans per window."""
        return max(1, round(self.removed / self.mean_span))

    @property
    def input_length(self) -> int:
        """Encoder tokens: what is kept, one sentinel per span, `</s>`."""
        return self.window - self.removed + self.spans + 1

    @property
    def target_length(self) -> int:
        """Decoder tokens: what was removed, one sentinel per span, `</s>`."""
        return self.removed + self.spans + 1

    def __call__(self, tokens: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Corrupt windows: kept and removed segments alternate, a kept one first.

        Args:
            tokens: `int64` array of shape (rows, window).
            draw: Source of randomness.

        Returns:
            Encoder inputs (rows, input_length) and targets (rows, target_length).
        """
        rows = len(tokens)
        lengths = np.empty((rows, 2 * self.spans), dtype=np.int64)
        lengths[:, 0::2] = _partitions(rows, self.window - self.removed, self.spans, draw)
        lengths[:, 1::2] = _partitions(rows, self.removed, self.spans, draw)
        segment = np.repeat(np.tile(np.arange(2 * self.spans), rows), lengths.ravel()).reshape(rows, self.window)
        gone = segment % 2 == 1
        first = np.diff(segment, axis=1, prepend=-1) != 0
        # The first token of a segment that is left out gives way to the sentinel of its span.
        marked = np.where(first, FIRST_SENTINEL + segment // 2, tokens)
        inputs = np.where(gone, marked, tokens)[~gone | first].reshape(rows, -1)
        targets = np.where(gone, tokens, marked)[gone | first].reshape(rows, -1)
        end = np.full((rows, 1), EOS_ID)
        return np.concatenate([inputs, end], axis=1), np.concatenate([targets, end], axis=1)


def _partitions(rows: int, total: int, parts: int, draw: np.random.Generator) -> np.ndarray:
    """Cut `total` into `parts` positive numbers, all cuts equally likely; shape (rows, parts)."""
    places = draw.random((rows, total - 1)).argpartition(parts - 2, axis=1)[:, : parts - 1] if parts > 1 else None
    cuts = np.sort(places, axis=1) + 1 if places is not None else np.empty((rows, 0), dtype=np.int64)
    return np.diff(cuts, axis=1, prepend=0, append=total)
