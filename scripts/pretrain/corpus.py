"""Text to token files: the corpus folder becomes one flat array of token ids per part.

A corpus folder holds `train-*.txt` or `train-*.txt.xz` and `valid.txt`; documents are separated by a line
`<|endoftext|>`. Every document becomes its tokens and one `</s>`; documents follow each other without padding, and a
training window is any stretch of the array (packing).
"""

import lzma
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from scripts.pretrain.tokenizer import EOS_ID


SEPARATOR = "<|endoftext|>"


def documents(path: Path) -> Iterator[str]:
    """Read the documents of one part, plain or xz.

    Args:
        path: `*.txt` or `*.txt.xz`.

    Yields:
        Documents without blank ends; empty ones are left out.
    """
    opener = lzma.open if path.suffix == ".xz" else open
    lines: list[str] = []
    with opener(path, "rt", encoding="utf-8") as file:
        for line in file:
            if line.strip() != SEPARATOR:
                lines.append(line)
                continue
            if text := "".join(lines).strip():
                yield text
            lines = []
    if text := "".join(lines).strip():
        yield text


def parts(folder: Path) -> list[Path]:
    """List the training parts of a corpus folder in order.

    Args:
        folder: The corpus folder.

    Returns:
        Paths of `train-*.txt*`.

    Raises:
        FileNotFoundError: There is none.
    """
    found = sorted(folder.glob("train-*.txt")) + sorted(folder.glob("train-*.txt.xz"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no train-*.txt or train-*.txt.xz; name the corpus folder.")
    return found


def sample(path: Path, share: float, seed: int) -> Iterator[str]:
    """Draw documents at random, for the tokenizer.

    Args:
        path: One part.
        share: Probability with which a document is taken.
        seed: Seed of the draw.

    Yields:
        Documents.
    """
    draw = random.Random(seed)
    return (text for text in documents(path) if draw.random() < share)


def pack(path: Path, tokenizer: Tokenizer, target: Path, batch: int = 512) -> int:
    """Write one part as a flat `uint16` array in a `.npy` file.

    Args:
        path: The part.
        tokenizer: Tokenizer with at most 65,536 tokens.
        target: The `.npy` file.
        batch: Documents tokenized at a time.

    Returns:
        Number of tokens.
    """
    pieces: list[np.ndarray] = []
    texts: list[str] = []

    def flush() -> None:
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            pieces.append(np.asarray([*encoding.ids, EOS_ID], dtype=np.uint16))
        texts.clear()

    for text in documents(path):
        texts.append(text)
        if len(texts) == batch:
            flush()
    flush()
    tokens = np.concatenate(pieces)
    np.save(target, tokens)
    return len(tokens)


class PackedTokens:
    """Windows out of the packed parts, chosen by number so that a run can be taken up anywhere.

    The parts are cut into windows of `length` tokens; a permutation drawn from (seed, pass) puts them in order.
    Window `i` is therefore a function of the seed and `i` alone.
    """

    def __init__(self, files: list[Path], length: int, seed: int) -> None:
        """Open the files as memory maps.

        Args:
            files: `.npy` files written by `pack`.
            length: Tokens per window.
            seed: Seed of the order.

        Raises:
            ValueError: The files hold fewer tokens than one window.
        """
        self.arrays = [np.load(file, mmap_mode="r") for file in files]
        self.length, self.seed = length, seed
        self.starts = [
            (part, at) for part, array in enumerate(self.arrays) for at in range(0, len(array) - length + 1, length)
        ]
        if not self.starts:
            raise ValueError(f"The packed files hold no window of {length} tokens; pack more text.")
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Windows in one pass over the text."""
        return len(self.starts)

    def window(self, number: int) -> np.ndarray:
        """Give window `number`; numbers run on over passes.

        Args:
            number: 0, 1, 2, ...

        Returns:
            `int64` array of shape (length,).
        """
        epoch, at = divmod(number, len(self.starts))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.starts))
        part, start = self.starts[self._order[at]]
        return np.asarray(self.arrays[part][start : start + self.length], dtype=np.int64)
