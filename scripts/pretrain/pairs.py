"""Prompt/completion pairs as token files, and back."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer


def pack_pairs(pairs: Iterable[tuple[str, str]], tokenizer: Tokenizer, folder: Path, batch: int = 2048) -> int:
    """Write `pairs.npy` (tokens, flat, `uint16`) and `pairs-ends.npy` (ends of prompt and completion, (pairs, 2)).

    Args:
        pairs: Prompt and completion.
        tokenizer: The plain tokenizer; it starts a completion with a blank by itself.
        folder: Where the files go.
        batch: Pairs tokenized at a time.

    Returns:
        Number of pairs.
    """
    pieces: list[np.ndarray] = []
    stream = iter(pairs)
    while group := list(islice(stream, batch)):
        texts = [text for pair in group for text in pair]
        encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        pieces += [np.asarray(encoding.ids, dtype=np.uint16) for encoding in encoded]
    np.save(folder / "pairs.npy", np.concatenate(pieces))
    np.save(folder / "pairs-ends.npy", np.cumsum([len(piece) for piece in pieces]).reshape(-1, 2))
    return len(pieces) // 2


class PackedPairs:
    """Tokenized pairs, taken by number; the order is drawn anew in every pass."""

    def __init__(self, folder: Path, seed: int, prompt_length: int, answer_length: int) -> None:
        """Open the files as memory maps.

        Args:
            folder: Folder that `pack_pairs` wrote to.
            seed: Seed of the order.
            prompt_length: Longest prompt, in tokens, that is used.
            answer_length: Longest completion, in tokens, that is used.
        """
        self.tokens = np.load(folder / "pairs.npy", mmap_mode="r")
        ends = np.load(folder / "pairs-ends.npy").reshape(-1, 2)
        starts = np.concatenate([[0], ends[:-1, 1]])
        fits = (ends[:, 0] - starts <= prompt_length) & (ends[:, 1] - ends[:, 0] <= answer_length)
        self.bounds = np.concatenate([starts[:, None], ends], axis=1)[fits]
        self.seed = seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def pair(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Give prompt and completion number `number`, as `uint16` tokens without special ones."""
        epoch, at = divmod(number, len(self.bounds))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, 2, epoch]).permutation(len(self.bounds))
        start, middle, end = self.bounds[self._order[at]]
        return self.tokens[start:middle], self.tokens[middle:end]
