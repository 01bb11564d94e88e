"""Which rows go where: a dev set out of train, a smaller set of rows, and what two sets share.

A row's place in a draw is the SHA-256 of the seed and its text. So the same rows are drawn whatever the order of the
lines in the file, on every machine, and a larger draw holds the smaller one.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from datasets import Dataset


SINGLE = ""
"""Stratum of all completions that occur once. A completion is never empty, so the name is free."""


def columns(dataset: Dataset) -> tuple[list[str], list[str]]:
    """All prompts and all completions, each as one list (a slice is read at once, an iteration row by row)."""
    return dataset["prompt"][:], dataset["completion"][:]


def row_hash(seed: int, prompt: str, completion: str) -> str:
    """SHA-256 of the seed and one row, as hexadecimal digits: the row's place in every draw."""
    return hashlib.sha256("\x00".join((str(seed), prompt, completion)).encode()).hexdigest()


def draw_stratified(dataset: Dataset, rows: int, *, seed: int) -> list[int]:
    """Indices of `rows` rows whose completions are mixed as in `dataset`, in the order of `dataset`.

    Row number i (from 0, by hash) of a completion with n rows stands at (i + ½) / n; the rows that stand first are
    drawn. This is the apportionment of Webster: a completion with a share p of the rows gets p · rows, rounded.
    Completions that occur once (free text) form one stratum together.

    Args:
        dataset: Rows with `prompt` and `completion`.
        rows: How many to draw; all of them when there are fewer.
        seed: Another seed, another draw.

    Returns:
        Ascending indices, min(rows, len(dataset)) of them.
    """
    return sorted(_stratified(seed, *columns(dataset))[:rows])


def draw_balanced(dataset: Dataset, rows: int, *, labels: Collection[str], seed: int) -> list[int]:
    """Indices of `rows` rows with each of `labels` equally often, in the order of `dataset`.

    A label with too few rows gives all it has, and the others fill up. Rows whose completion is not one of `labels`
    are never drawn.

    Args:
        dataset: Rows with `prompt` and `completion`.
        rows: How many to draw; all the labelled ones when there are fewer.
        labels: The closed label set.
        seed: Another seed, another draw.

    Returns:
        Ascending indices.
    """
    prompts, completions = columns(dataset)
    known = [index for index, completion in enumerate(completions) if completion in labels]
    places = _places(seed, prompts, completions, completions, known)
    return sorted(index for *_, index in sorted(places)[:rows])


def cut_dev(dataset: Dataset, rows: int, seed: int) -> tuple[Dataset, Dataset | None]:
    """Cut a dev set off `dataset`: stratified by completion, the same rows whatever their order.

    The two parts share no input: inputs that occur once are drawn first, and where they are too few, whole inputs with
    all their copies, stratified by the completions that they have together.

    Args:
        dataset: Rows with `prompt` and `completion`.
        rows: Rows wanted for dev. Fewer are taken when a fifth of `dataset` is fewer, so that small tasks keep their
            training rows, or when the next whole input would be too large.
        seed: Another seed, another dev set.

    Returns:
        What remains, and the dev set; None for the latter when no row can be spared.
    """
    rows = min(rows, len(dataset) // 5)
    prompts, completions = columns(dataset)
    copies: defaultdict[str, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        copies[prompt].append(index)
    dev: set[int] = set()
    for single in (True, False):
        inputs = [prompt for prompt, indices in copies.items() if (len(indices) == 1) is single]
        answers = ["\x00".join(sorted(completions[index] for index in copies[prompt])) for prompt in inputs]
        for place in _stratified(seed, inputs, answers):
            if len(dev) + len(whole := copies[inputs[place]]) <= rows:
                dev.update(whole)
    if not dev:
        return dataset, None
    rest = [index for index in range(len(dataset)) if index not in dev]
    return dataset.select(rest, keep_in_memory=True), dataset.select(sorted(dev), keep_in_memory=True)


def repeated(dataset: Dataset) -> int:
    """How many rows have an input (prompt) that occurs more than once."""
    return sum(times for times in Counter(columns(dataset)[0]).values() if times > 1)


def overlap(train: Dataset, evaluation: Dataset) -> int:
    """How many rows of `evaluation` have an input (prompt) that also occurs in `train`."""
    seen = set(columns(train)[0])
    return sum(prompt in seen for prompt in columns(evaluation)[0])


def conflicts(dataset: Dataset) -> int:
    """How many inputs (prompts) occur with two or more different completions."""
    answers = defaultdict(set)
    for prompt, completion in zip(*columns(dataset), strict=True):
        answers[prompt].add(completion)
    return sum(len(completions) > 1 for completions in answers.values())


def same_rows(first: Dataset, second: Dataset) -> bool:
    """Whether two sets hold the same rows, each as often, in any order."""
    return len(first) == len(second) and _count_rows(first) == _count_rows(second)


def _count_rows(dataset: Dataset) -> Counter[tuple[str, str]]:
    return Counter(zip(*columns(dataset), strict=True))


def _stratified(seed: int, prompts: list[str], completions: list[str]) -> list[int]:
    """All indices, in the order in which they are drawn; see `draw_stratified`."""
    times = Counter(completions)
    strata = [completion if times[completion] > 1 else SINGLE for completion in completions]
    size = Counter(strata)
    places = _places(seed, prompts, completions, strata, range(len(strata)))
    standing = [((place + 0.5) / size[strata[index]], digest, index) for place, digest, index in places]
    return [index for *_, index in sorted(standing)]


def _places(
    seed: int, prompts: list[str], completions: list[str], strata: list[str], indices: Iterable[int]
) -> list[tuple[int, str, int]]:
    """For each index: its place by hash within its stratum (from 0), its hash, itself."""
    places, taken = [], Counter()
    for digest, index in sorted((row_hash(seed, prompts[index], completions[index]), index) for index in indices):
        places.append((taken[strata[index]], digest, index))
        taken[strata[index]] += 1
    return places
