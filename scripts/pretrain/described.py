"""Prompt and completion pairs whose answer is the teacher's: which word comes nearest to a text.

Instructions made from the corpus alone ask for what stands in the text. Here the answer need not: among random words
of the encoder's vocabulary it is the one whose vector has the largest cosine with the text's, both without the mean of
their kind. No benchmark task is used.
"""

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from scripts.pretrain.instructions import Pair, ask


QUESTIONS = (
    "What is the following text about?",
    "Which word comes nearest to the text?",
    "Which of these words would you file the text under?",
)

CANDIDATES = 60
"""Random words among which the nearest is the answer; the other options come from the farther half."""

BATCH = 256
"""Texts whose nearness to all words is held at a time."""


def described(texts: Sequence[str], vectors: Tensor, words: list[str], table: Tensor, seed: int) -> Iterator[Pair]:
    """Make pairs.

    Args:
        texts: N texts.
        vectors: What the encoder says of them, N x d.
        words: Words to choose from, more than `CANDIDATES`.
        table: What it says of each of the words, W x d.
        seed: Seed of all choices.

    Yields:
        Prompt and completion.
    """
    draw = random.Random(seed)
    table = torch.nn.functional.normalize(table - table.mean(0), dim=1)
    mean = vectors.mean(0)
    for at in range(0, len(texts), BATCH):
        nearness = (vectors[at : at + BATCH] - mean) @ table.mT
        for near, text in zip(nearness.tolist(), texts[at : at + BATCH], strict=True):
            some = sorted(draw.sample(range(len(words)), CANDIDATES), key=near.__getitem__)
            answer, wrong = some[-1], draw.sample(some[: CANDIDATES // 2], draw.randint(1, 5))
            options = [words[number] for number in (answer, *wrong)]
            yield ask(draw.choice(QUESTIONS), options, text, words[answer], draw)
