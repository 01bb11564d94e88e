"""Short texts that a teacher and a model read together.

`passages.npy` holds them in UTF-8, one after another; `passages-table.npy` has for each where it ends, its tokens of
the model, and whether it is as it stood in the corpus. The others have words put in at random from the encoder's
vocabulary, or are nothing but such words: the corpus knows few of the words that people judge things with.
"""

import random
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from scripts.pretrain.teacher import Teacher, owners, word_starts
from scripts.pretrain.tokenizer import BOS_ID, EOS_ID, PAD_ID


SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")

WORDS = (6, 12, 20, 30, 45, 60)
"""Lengths in words that a passage is made up to."""

CHANGED, RANDOM = 0.25, 0.1
"""Share of the passages in which words are put in, and of those that are only random words."""

SHAPES = ((32, 3), (96, 1))
"""Longest passages of a batch in tokens, and factor on its rows: batches of about the same size and of two shapes."""


def passages(documents: Iterable[str], words: list[str], seed: int, most: int = 8) -> Iterator[tuple[str, bool]]:
    """Cut passages out of documents.

    Args:
        documents: Texts of the corpus.
        words: Words that are put in.
        seed: Seed of all choices.
        most: Passages of one document.

    Yields:
        The passage, and whether it is unchanged.
    """
    draw = random.Random(seed)
    for document in documents:
        sentences = [sentence.split() for sentence in SENTENCE_END.split(document) if len(sentence) > 15]
        at = draw.randrange(min(4, len(sentences))) if sentences else 0
        for _ in range(most):
            if at >= len(sentences):
                break
            wanted, own = draw.choice(WORDS), list[str]()
            while at < len(sentences) and len(own) < wanted:
                own += sentences[at]
                at += 1
            own = own[: max(WORDS)]
            kind = draw.random()
            if kind < CHANGED:
                share = draw.choice((0.15, 0.3, 0.5))
                own = [draw.choice(words) if draw.random() < share else word for word in own]
            elif kind < CHANGED + RANDOM:
                own = [draw.choice(words) for _ in range(draw.randint(3, 14))]
            yield " ".join(own), kind >= CHANGED + RANDOM


def whole_words(encoder: Tokenizer) -> list[str]:
    """List the words among the encoder's pieces, in the order of their numbers."""
    pieces = sorted(encoder.get_vocab(), key=encoder.get_vocab().get)
    return [piece for piece in pieces if piece.isascii() and piece.isalpha() and len(piece) > 2]


def pack_passages(texts: Iterable[tuple[str, bool]], tokenizer: Tokenizer, folder: Path, batch: int = 2048) -> int:
    """Write `passages.npy` and `passages-table.npy`.

    Args:
        texts: Passages, and whether they are unchanged.
        tokenizer: Tokenizer of the model.
        folder: Where the files go.
        batch: Passages at a time.

    Returns:
        Number of passages.
    """
    pieces: list[np.ndarray] = []
    table: list[tuple[int, int, bool]] = []
    stream, end = iter(texts), 0
    while group := list(islice(stream, batch)):
        encoded = tokenizer.encode_batch_fast([text for text, _ in group], add_special_tokens=False)
        for (text, clean), encoding in zip(group, encoded, strict=True):
            pieces.append(np.frombuffer(text.encode(), dtype=np.uint8))
            end += len(pieces[-1])
            table.append((end, len(encoding.ids), clean))
    np.save(folder / "passages.npy", np.concatenate(pieces))
    np.save(folder / "passages-table.npy", np.asarray(table, dtype=np.int64))
    return len(table)


class Reading:
    """Batches of passages with what the teacher says of them; a function of seed and number alone."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, teacher: Teacher, rows: int, seed: int, llama: bool) -> None:
        """Open the files as memory maps.

        Args:
            folder: Folder that `pack_passages` wrote to.
            tokenizer: Tokenizer of the model.
            teacher: Who reads along.
            rows: Rows of a batch of the long shape.
            seed: Seed of the order.
            llama: Whether rows begin with `<s>` instead of ending with `</s>` alone, and have labels.
        """
        self.texts = np.load(folder / "passages.npy", mmap_mode="r")
        table = np.load(folder / "passages-table.npy")
        self.ends, self.clean = table[:, 0], table[:, 2].astype(bool)
        self.tokenizer, self.teacher, self.rows, self.seed, self.llama = tokenizer, teacher, rows, seed, llama
        short = table[:, 1] <= SHAPES[0][0] - 2
        self.pools = [np.flatnonzero(short), np.flatnonzero(~short)]
        if min(map(len, self.pools)) == 0:
            raise ValueError(f"{folder} holds no short or no long passages; pack more text.")
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def numbers(self, number: int) -> tuple[list[int], int]:
        """Say which passages batch `number` has, and how long its rows are; the two shapes take turns."""
        shape, turn = number % 2, number // 2
        length, factor = SHAPES[shape]
        rows, pool = self.rows * factor, self.pools[shape]
        chosen = []
        for place in range(turn * rows, (turn + 1) * rows):
            epoch, at = divmod(place, len(pool))
            if (shape, epoch) not in self._orders:
                order = np.random.default_rng([self.seed, 4, shape, epoch]).permutation(len(pool))
                self._orders[shape, epoch] = order
            chosen.append(int(pool[self._orders[shape, epoch][at]]))
        return chosen, length

    def text(self, number: int) -> str:
        """Give passage `number`."""
        start = self.ends[number - 1] if number else 0
        return self.texts[start : self.ends[number]].tobytes().decode()

    def batch(self, number: int) -> dict[str, torch.Tensor]:
        """Give batch `number`.

        Returns:
            `input_ids`, `attention_mask`, `owner` (rows x length; the word of each token, -1 for none), `words` (what
            the teacher says of the W words), `known` (of which it says anything), `texts` (what it says of the rows),
            `row` (of each word), and for the Llama `labels` (of unchanged passages).
        """
        chosen, length = self.numbers(number)
        texts = [self.text(one) for one in chosen]
        starts = [word_starts(text) for text in texts]
        begin, end = ([BOS_ID], [EOS_ID]) if self.llama else ([], [EOS_ID])
        ids = torch.full((len(texts), length), PAD_ID)
        owner, count = torch.full_like(ids, -1), 0
        for row, encoding in enumerate(self.tokenizer.encode_batch(texts, add_special_tokens=False)):
            inner = encoding.ids[: length - len(begin) - 1]
            ids[row, : len(inner) + len(begin) + 1] = torch.tensor([*begin, *inner, *end])
            own = torch.tensor(owners(texts[row], encoding.offsets[: len(inner)], starts[row]))
            owner[row, len(begin) : len(begin) + len(inner)] = torch.where(own < 0, own, own + count)
            count += len(starts[row])
        words, known, whole = self.teacher.read(texts, starts)
        mask = (ids != PAD_ID).long()
        batch = {"input_ids": ids, "attention_mask": mask, "owner": owner, "words": words, "known": known}
        batch |= {"texts": whole, "row": torch.repeat_interleave(torch.tensor([len(own) for own in starts]))}
        if self.llama:
            unclean = ~torch.from_numpy(self.clean[chosen])[:, None]
            batch["labels"] = ids.masked_fill((mask == 0) | unclean, -100)
        return batch
