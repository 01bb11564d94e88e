"""Span corruption: the training signal of T5.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", section 3.1.4.
"""

from dataclasses import dataclass

import numpy as np

from scripts.pretrain.tokenizer import FIRST_SENTINEL


EOS_ID = 1


@dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Removes spans of tokens from a window; the decoder gives them back.

    All windows have the same number of removed tokens and spans, so every batch has the same shape and no padding.
    """

    window: int = 294
    """Tokens of text taken at a time."""
    density: float = 0.2
    """Share of removed tokens."""
    mean_span: float = 3.0
    """Mean length of a removed span, in tokens."""

    @property
    def removed(self) -> int:
        """Number of removed tokens per window."""
        return round(self.window * self.density)

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
        """Corrupt one window.

        Args:
            tokens: `int64` array of shape (window,).
            draw: Source of randomness.

        Returns:
            Encoder input of shape (input_length,) and target of shape (target_length,).
        """
        removed = _partition(self.removed, self.spans, draw)
        kept = _partition(self.window - self.removed, self.spans, draw)
        inputs, target, at = [], [], 0
        for number in range(self.spans):
            sentinel = [FIRST_SENTINEL + number]
            middle, end = at + kept[number], at + kept[number] + removed[number]
            inputs += [tokens[at:middle], sentinel]
            target += [sentinel, tokens[middle:end]]
            at = end
        return np.concatenate([*inputs, [EOS_ID]]), np.concatenate([*target, [EOS_ID]])


def _partition(total: int, parts: int, draw: np.random.Generator) -> np.ndarray:
    """Cut `total` into `parts` positive numbers, all cuts equally likely."""
    cuts = np.sort(draw.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
