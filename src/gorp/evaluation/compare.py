"""When an answer is the expected one."""

import string
from collections.abc import Iterable

from gorp.data import Task


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, single blanks.

    Articles stay, since "A" is an answer of COPA. This is how the exact match of the CL_Benchmark
    results is computed (O-LoRA, arXiv:2310.14152).
    """
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def _without_case(text: str) -> str:
    return " ".join(text.casefold().split())


COMPARISONS = {"words": normalise, "text": _without_case, "exact": str.strip}
"""What of an answer counts, the least first: its words, its words and punctuation, every character but outer blanks."""

_COUNTED = {
    "text": "answers are compared with their punctuation",
    "exact": "answers are compared with their punctuation, case and blanks",
}


def comparison(task: Task) -> str:
    """The name in `COMPARISONS` under which the answers of `task` are compared.

    A ranked label is the expected one or is not. A generated answer of a closed label set counts by its words, as
    published scores do, and one in free text by its words and punctuation: "-3" is not "3". Where two labels, or two
    expected answers, would be the same, or one of them empty, more counts.
    """
    if task.metric == "label_ranking":
        return "exact"
    answers = _answers(task)
    names = ("words", "text") if task.labels is not None else ("text",)
    return next((name for name in names if _pair(answers, name) is None), "exact")


def is_right(answer: str, expected: str, name: str) -> bool:
    """Whether `answer` is `expected` under a comparison; what that leaves nothing of is compared as it is."""
    compared = COMPARISONS[name]
    return compared(answer) == compared(expected) if compared(expected) else answer.strip() == expected.strip()


def comparison_note(task: Task) -> str | None:
    """Why more of an answer counts than usual, and None where it does not."""
    chosen, usual = comparison(task), "text" if task.labels is None else "words"
    if task.metric == "label_ranking" or chosen == usual:
        return None
    before = list(COMPARISONS)[list(COMPARISONS).index(chosen) - 1]
    first, second = _pair(_answers(task), before) or ("", "")
    return f"{_COUNTED[chosen]}, because `{first}` and `{second}` would be the same otherwise"


def _answers(task: Task) -> list[str]:
    return list(dict.fromkeys(task.eval["completion"][:] if task.labels is None else task.labels))


def _pair(answers: Iterable[str], name: str) -> tuple[str, str] | None:
    """Two answers that are the same under a comparison, or one of which nothing is left and the empty answer."""
    seen: dict[str, str] = {}
    for answer in answers:
        compared = COMPARISONS[name](answer)
        if not compared:
            return answer, ""
        if compared in seen and seen[compared].strip() != answer.strip():
            return seen[compared], answer
        seen.setdefault(compared, answer)
    return None
