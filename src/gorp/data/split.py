"""Split a dev set off train, draw a subset of rows, and count what two sets share.

Rows are drawn in the order of the SHA-256 of the seed and their text. So the same rows are drawn on every machine and
for every order of the lines in the file, and a larger draw contains the smaller one.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from datasets import Dataset


CUT_SEED = 0
"""Seed of the split into train, dev and eval rows. Not the run's seed, so that scores of two seeds are comparable."""

SINGLE = ""
"""Name of the stratum of all completions that occur once. A completion is never empty, so no other stratum has it."""


def columns(dataset: Dataset) -> tuple[list[str], list[str]]:
    """Return all prompts and all completions as lists. A slice is read at once; an iteration would read row by row."""
    return dataset["prompt"][:], dataset["completion"][:]


def row_hash(seed: int, prompt: str, completion: str) -> str:
    """Return the SHA-256 of the seed and one row, in hexadecimal: the row's rank in every draw."""
    return hashlib.sha256(f"{seed}\x00{prompt}\x00{completion}".encode()).hexdigest()


def draw_stratified(dataset: Dataset, rows: int, *, seed: int) -> list[int]:
    """Draw `rows` rows in which every completion has about the same share as in `dataset`.

    Row number i (from 0, by hash) of a completion with n rows gets the position (i + ½) / n; the rows with the lowest
    positions are drawn. This is Webster's apportionment: a completion with a share p of the rows gets p · rows,
    rounded. Completions that occur once (free text) form one stratum together.

    Args:
        dataset: Rows with `prompt` and `completion`.
        rows: Number of rows to draw; all rows if there are fewer.
        seed: Seed of the draw.

    Returns:
        Ascending indices, min(rows, len(dataset)) of them.
    """
    return sorted(_stratified(seed, *columns(dataset))[:rows])


def draw_balanced(dataset: Dataset, rows: int, *, labels: Collection[str], seed: int) -> list[int]:
    """Draw `rows` rows with the same number of rows for each of `labels`.

    If a label has too few rows, all of them are drawn and the other labels fill up. Rows whose completion is not one of
    `labels` are never drawn.

    Args:
        dataset: Rows with `prompt` and `completion`.
        rows: Number of rows to draw; all labelled rows if there are fewer.
        labels: The closed label set.
        seed: Seed of the draw.

    Returns:
        Ascending indices.
    """
    prompts, completions = columns(dataset)
    labelled = [index for index, completion in enumerate(completions) if completion in labels]
    ranks = _ranks(seed, prompts, completions, completions, labelled)
    return sorted(index for *_, index in sorted(ranks)[:rows])


def cut_dev(dataset: Dataset, rows: int, seed: int) -> tuple[Dataset, Dataset | None]:
    """Split a dev set off `dataset`, stratified by completion. The order of the rows does not matter.

    The two parts share no prompt. Prompts that occur once are drawn first. If there are too few of them, prompts that
    occur several times are drawn with all their rows, stratified by the set of their completions.

    Args:
        dataset: Rows with `prompt` and `completion`.
        rows: Rows wanted for dev. Fewer are taken if this is more than a fifth of `dataset`, so that small tasks keep
            their training rows, or if the rows of the next prompt do not fit any more.
        seed: Seed of the draw.

    Returns:
        The remaining rows and the dev set, which is None if it would be empty.
    """
    dev = dev_indices(*columns(dataset), rows, seed)
    if not dev:
        return dataset, None
    rest = [index for index in range(len(dataset)) if index not in dev]
    return dataset.select(rest, keep_in_memory=True), dataset.select(sorted(dev), keep_in_memory=True)


def dev_indices(prompts: list[str], completions: list[str], rows: int, seed: int) -> set[int]:
    """Return the indices of the rows that `cut_dev` splits off."""
    rows = min(rows, len(prompts) // 5)
    copies: defaultdict[str, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        copies[prompt].append(index)
    dev: set[int] = set()
    for single in (True, False):
        inputs = [prompt for prompt, indices in copies.items() if (len(indices) == 1) is single]
        answers = ["\x00".join(sorted(completions[index] for index in copies[prompt])) for prompt in inputs]
        for drawn in _stratified(seed, inputs, answers):
            if len(dev) + len(indices := copies[inputs[drawn]]) <= rows:
                dev.update(indices)
    return dev


def repeated(dataset: Dataset) -> int:
    """Count the rows whose prompt occurs more than once."""
    return sum(times for times in Counter(columns(dataset)[0]).values() if times > 1)


def overlap(train: Dataset, evaluation: Dataset) -> int:
    """Count the rows of `evaluation` whose prompt also occurs in `train`."""
    seen = set(columns(train)[0])
    return sum(prompt in seen for prompt in columns(evaluation)[0])


def conflicts(dataset: Dataset) -> int:
    """Count the prompts that occur with two or more different completions."""
    answers = defaultdict(set)
    for prompt, completion in zip(*columns(dataset), strict=True):
        answers[prompt].add(completion)
    return sum(len(completions) > 1 for completions in answers.values())


def same_rows(first: Dataset, second: Dataset) -> bool:
    """Whether two sets have the same rows, each the same number of times, in any order."""
    return len(first) == len(second) and _count_rows(first) == _count_rows(second)


def _count_rows(dataset: Dataset) -> Counter[tuple[str, str]]:
    return Counter(zip(*columns(dataset), strict=True))


def _stratified(seed: int, prompts: list[str], completions: list[str]) -> list[int]:
    """Return all indices, in the order in which they are drawn; see `draw_stratified`."""
    times = Counter(completions)
    strata = [completion if times[completion] > 1 else SINGLE for completion in completions]
    size = Counter(strata)
    ranks = _ranks(seed, prompts, completions, strata, range(len(strata)))
    positions = [((rank + 0.5) / size[strata[index]], digest, index) for rank, digest, index in ranks]  # (i + ½) / n
    return [index for *_, index in sorted(positions)]


def _ranks(
    seed: int, prompts: list[str], completions: list[str], strata: list[str], indices: Iterable[int]
) -> list[tuple[int, str, int]]:
    """Return (rank by hash within the stratum, from 0; hash; index) for each index."""
    ranks, counts = [], Counter()
    for digest, index in sorted((row_hash(seed, prompts[index], completions[index]), index) for index in indices):
        ranks.append((counts[strata[index]], digest, index))
        counts[strata[index]] += 1
    return ranks
