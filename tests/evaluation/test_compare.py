"""Answers are compared by words for published label sets, and strictly enough that no two answers are equal."""

import pytest
from datasets import Dataset

from gorp.data import Task
from gorp.evaluation import comparison
from gorp.evaluation.compare import comparison_note, is_right


def task(answers, *, labels=None, metric="exact_match") -> Task:
    rows = Dataset.from_dict({"prompt": [f"p{i}" for i in range(len(answers))], "completion": list(answers)})
    return Task(name="t", train=rows, dev=None, eval=rows, labels=labels, metric=metric, source="here")


@pytest.mark.parametrize(
    ("answers", "labels", "metric", "wanted"),
    [
        (["World", "Sci/Tech"], ("World", "Sci/Tech"), "exact_match", "words"),
        (["+1", "-1"], ("+1", "-1"), "exact_match", "text"),
        (["C", "C#"], ("C", "C#", "C++"), "exact_match", "text"),
        (["+", "-"], ("+", "-"), "exact_match", "text"),
        (["US", "us"], ("US", "us"), "exact_match", "exact"),
        (["World", "Sports"], ("World", "Sports"), "label_ranking", "exact"),
        (["-3"], None, "exact_match", "text"),
        (["Yes.", "yes"], None, "exact_match", "text"),
        (["Polish", "polish"], None, "exact_match", "exact"),
    ],
)
def test_the_most_lenient_comparison_that_distinguishes_all_answers_is_used(answers, labels, metric, wanted):
    of = task(answers, labels=labels, metric=metric)
    name = comparison(of)
    assert name == wanted
    for first in labels or answers:
        for second in labels or answers:
            assert is_right(first, second, name) == (first == second)


@pytest.mark.parametrize(("answer", "expected"), [("3", "-3"), ("15", "1.5"), ("C", "C++"), ("fx", "f(x)")])
def test_punctuation_counts_in_free_text(answer, expected):
    name = comparison(task([expected]))
    assert not is_right(answer, expected, name)
    assert is_right(f"  {expected.lower()}\n", expected, name)


def test_labels_of_published_sets_are_compared_by_words():
    name = comparison(task(["very negative"], labels=("very negative", "positive")))
    assert is_right("Very  Negative.", "very negative", name)
    assert not is_right("", "-", name)  # an expected answer without words is not the empty answer


def test_a_note_says_when_a_stricter_comparison_is_used():
    assert comparison_note(task(["a"], labels=("+1", "-1"))) == (
        "answers are compared including punctuation, because `+1` and `-1` would be equal otherwise"
    )
    assert "case and spaces, because `Polish` and `polish`" in comparison_note(task(["Polish", "polish"]))
    assert comparison_note(task(["yes"], labels=("yes", "no"))) is None
    assert comparison_note(task(["-1"], labels=("+1", "-1"), metric="label_ranking")) is None
