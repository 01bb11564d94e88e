"""What an encoder says of the passages, kept in files: a large one reads them once, for every model and every pass.

Beside `passages.npy` in a packed folder, for N passages with W words in all and an encoder of width d:
`kept-words.npy` (W x d, float16, the mean of its last layer over each word, zero for a word it did not reach),
`kept-texts.npy` (N x d, over the whole passage), `kept.json` (which encoder, and how many passages of a fixed random
order are done). It may be killed at any time; at most `CHUNK` passages are read again.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gorp.storage import read_json, write_json
from scripts.pretrain.teacher import Teacher, origin, word_starts


WORDS, TEXTS, TOLD = "kept-words.npy", "kept-texts.npy", "kept.json"
"""Names of the files."""

CHUNK, ROWS = 2048, 32
"""Passages between two notes of how far it is, and passages read at a time: of like length, to pad little."""


LONG, LATER = 30, 3.0
"""Words from which on a passage is long, and how many times as late such a one comes on average: it costs more."""


def order(ends: np.ndarray) -> np.ndarray:
    """Give the order in which passages are read, a random one with the short ones sooner.

    Args:
        ends: What `word_ends` gives.
    """
    late = np.where(np.diff(ends, prepend=0) > LONG, LATER, 1.0)
    return np.argsort(np.random.default_rng(5).random(len(ends)) * late)


def word_ends(texts: Iterable[str]) -> np.ndarray:
    """Count words: for each passage the number of words up to its end."""
    return np.cumsum([len(word_starts(text)) for text in texts])


def keep(folder: Path, texts: Sequence[str], source: str, until: float = float("inf")) -> int:
    """Let an encoder read passages, going on where the last call stopped.

    Args:
        folder: The packed folder.
        texts: All its passages.
        source: The encoder, as for `teacher.locate`.
        until: Seconds since 1970 after which no further chunk is begun.

    Returns:
        How many passages are done.

    Raises:
        ValueError: Another encoder has begun.
    """
    teacher, whole, path = Teacher(source, dtype=torch.float32), origin(source), folder / TOLD
    told = read_json(path) if path.exists() else {"source": source, **whole, "width": teacher.width, "done": 0}
    if told["sha256"] != whole["sha256"]:
        raise ValueError(f"{path} is of {told['name']}; delete it to read with {whole['name']} from the beginning.")
    ends, began = word_ends(texts), time.monotonic()
    numbers = order(ends)
    words = _opened(folder / WORDS, (int(ends[-1]), teacher.width), fresh=told["done"] == 0)
    rows = _opened(folder / TEXTS, (len(texts), teacher.width), fresh=told["done"] == 0)
    first = told["done"]
    while told["done"] < len(texts) and time.time() < until:
        chunk = sorted(numbers[told["done"] : told["done"] + CHUNK].tolist(), key=lambda number: len(texts[number]))
        for at in range(0, len(chunk), ROWS):
            group = chunk[at : at + ROWS]
            starts = [word_starts(texts[number]) for number in group]
            said, known, means = teacher.read([texts[number] for number in group], starts)
            pieces = said.masked_fill(~known[:, None], 0).split([len(own) for own in starts])
            for number, piece, mean in zip(group, pieces, means, strict=True):
                words[ends[number] - len(piece) : ends[number]] = piece.half().numpy()
                rows[number] = mean.half().numpy()
        words.flush()
        rows.flush()
        told["done"] += len(chunk)
        write_json(path, told)
        pace = (told["done"] - first) / (time.monotonic() - began)
        left = (len(texts) - told["done"]) / pace
        print(f"{told['done']:,} of {len(texts):,} passages, {pace:.0f} a second, {left / 60:.0f} min left", flush=True)
    return told["done"]


def _opened(path: Path, shape: tuple[int, int], fresh: bool) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+" if fresh else "r+", dtype=np.float16, shape=shape)


class Kept:
    """Reads what `keep` wrote."""

    def __init__(self, folder: Path, ends: np.ndarray) -> None:
        """Open the files as memory maps.

        Args:
            folder: The packed folder.
            ends: What `word_ends` gives for all passages.
        """
        self.told = read_json(folder / TOLD)
        self.width: int = self.told["width"]
        self.numbers = order(ends)[: self.told["done"]]
        self._ends = ends
        self._words = np.load(folder / WORDS, mmap_mode="r")
        self._texts = np.load(folder / TEXTS, mmap_mode="r")

    def read(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Give the words of passages, by number, as `Teacher.read` does, and for each passage the mean of its words.

        The encoder's own mean is not compared with the model's: its special tokens are in it, the more the shorter the
        passage, and the model has none of them.
        """
        starts = [int(self._ends[number - 1]) if number else 0 for number in numbers]
        pieces = [self._words[start : self._ends[number]] for start, number in zip(starts, numbers, strict=True)]
        words = torch.from_numpy(np.concatenate(pieces)).float()
        known = words.abs().sum(1) > 0
        row = torch.repeat_interleave(torch.tensor([len(piece) for piece in pieces]))
        counts = torch.bincount(row[known], minlength=len(numbers))[:, None].clamp(min=1)
        return words, known, words.new_zeros(len(numbers), self.width).index_add_(0, row, words) / counts

    def texts(self, numbers: Sequence[int]) -> Tensor:
        """Give what `Teacher.texts` would say of passages, by number."""
        return torch.from_numpy(np.stack([self._texts[number] for number in numbers])).float()
