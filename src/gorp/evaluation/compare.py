"""Compare an answer with the expected one."""

import string
from collections.abc import Iterable

from gorp.data import Task


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return `text` in lower case, without ASCII punctuation, with single spaces.

    Articles are kept, because "A" is an answer of COPA. The exact match of the published CL_Benchmark results is
    computed in this way (O-LoRA, arXiv:2310.14152).
    """
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def _without_case(text: str) -> str:
    return " ".join(text.casefold().split())


COMPARISONS = {"words": normalise, "text": _without_case, "exact": str.strip}
"""Ways to compare answers, from lenient to strict: words only; words and punctuation; all but outer spaces."""

_DESCRIPTIONS = {
    "text": "answers are compared including punctuation",
    "exact": "answers are compared including punctuation, case and spaces",
}


def comparison(task: Task) -> str:
    """Return the key of `COMPARISONS` with which the answers of `task` are compared.

    Ranked labels are compared exactly. Generated answers from a closed label set are compared by their words, as in
    published scores. Answers in free text are compared by words and punctuation: "-3" is not "3". If two labels or
    expected answers would be equal, or one of them empty, the next stricter comparison is used.
    """
    if task.metric == "label_ranking":
        return "exact"
    answers = _answers(task)
    names = ("words", "text") if task.labels is not None else ("text",)
    return next((name for name in names if _collision(answers, name) is None), "exact")


def is_right(answer: str, expected: str, name: str) -> bool:
    """Whether `answer` equals `expected` under a comparison, or exactly if the comparison leaves `expected` empty."""
    compared = COMPARISONS[name]
    return compared(answer) == compared(expected) if compared(expected) else answer.strip() == expected.strip()


def comparison_note(task: Task) -> str | None:
    """Return a note on why a stricter comparison than usual is used; None if it is not."""
    chosen, usual = comparison(task), "text" if task.labels is None else "words"
    if task.metric == "label_ranking" or chosen == usual:
        return None
    before = list(COMPARISONS)[list(COMPARISONS).index(chosen) - 1]
    first, second = _collision(_answers(task), before) or ("", "")
    return f"{_DESCRIPTIONS[chosen]}, because `{first}` and `{second}` would be equal otherwise"


def _answers(task: Task) -> list[str]:
    return list(dict.fromkeys(task.eval["completion"][:] if task.labels is None else task.labels))


def _collision(answers: Iterable[str], name: str) -> tuple[str, str] | None:
    """Return two answers that are equal under a comparison; ("…", "") if it makes one empty; None if there are none."""
    seen: dict[str, str] = {}
    for answer in answers:
        compared = COMPARISONS[name](answer)
        if not compared:
            return answer, ""
        if compared in seen and seen[compared].strip() != answer.strip():
            return seen[compared], answer
        seen.setdefault(compared, answer)
    return None
