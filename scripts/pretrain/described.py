"""Prompt and completion pairs whose answer is the teacher's: which word comes nearest to a text.

Instructions made from the corpus alone ask for what stands in the text. Here the answer need not: among random words
of the encoder's vocabulary it is the one whose vector has the largest cosine with the text's, both without the mean of
their kind. No benchmark task is used.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import islice

import torch

from scripts.pretrain.instructions import Pair, ask
from scripts.pretrain.teacher import Teacher


QUESTIONS = (
    "What is the following text about?",
    "Which word comes nearest to the text?",
    "Which of these words would you file the text under?",
)

CANDIDATES = 60
"""Random words among which the nearest is the answer; the other options come from the farther half."""


def described(texts: Iterable[str], words: list[str], teacher: Teacher, seed: int, batch: int = 256) -> Iterator[Pair]:
    """Make pairs.

    Args:
        texts: Passages.
        words: Words to choose from, more than `CANDIDATES`.
        teacher: The encoder.
        seed: Seed of all choices.
        batch: Texts at a time.

    Yields:
        Prompt and completion.
    """
    draw, stream = random.Random(seed), iter(texts)
    table = torch.cat([teacher.texts(words[at : at + batch]) for at in range(0, len(words), batch)])
    table = torch.nn.functional.normalize(table - table.mean(0), dim=1)
    while len(group := list(islice(stream, batch))) > 1:
        # Texts of like length go together: less padding.
        group.sort(key=len)
        parts = [teacher.texts(group[at : at + 32]) for at in range(0, len(group), 32)]
        vectors = torch.cat(parts)
        nearness = (vectors - vectors.mean(0)) @ table.mT
        for near, text in zip(nearness.tolist(), group, strict=True):
            some = sorted(draw.sample(range(len(words)), CANDIDATES), key=near.__getitem__)
            answer, wrong = some[-1], draw.sample(some[: CANDIDATES // 2], draw.randint(1, 5))
            options = [words[number] for number in (answer, *wrong)]
            yield ask(draw.choice(QUESTIONS), options, text, words[answer], draw)
