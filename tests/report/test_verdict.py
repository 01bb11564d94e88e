import pytest

from gorp.report import in_one_line, in_one_sentence, verdicts
from tests.report.matrices import FIRST, matrix


NAN = float("nan")


def test_each_task_gets_a_sentence_with_its_score_and_change():
    assert list(map(str, verdicts(matrix()))) == [
        "news: 70.0, lost 20.0 since it was learned",
        "films: 76.0, lost 4.0 since it was learned",
        "qa: 60.0, just learned",
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[0, 0], [50, 0], [50.04, 40]], "a: 50.0, unchanged since it was learned"),
        ([[0, 0], [50, 0], [60, 40]], "a: 60.0, gained 10.0 since it was learned"),
        ([[0, 0], [NAN, NAN], [60, 40]], "a: 60.0"),  # trained jointly: no score after task 1 alone
        ([[0, 0], [50, 0], [NAN, 40]], "a: not scored"),
    ],
)
def test_sentence_of_the_first_of_two_tasks(values, words):
    assert str(verdicts(matrix(values, ("a", "b")))[0]) == words


def test_tasks_not_learned_yet_are_left_out():
    values = [[0, 0], [50, 10], [NAN, NAN]]
    assert list(map(str, verdicts(matrix(values, ("a", "b"))))) == ["a: 50.0, just learned"]
    assert verdicts(matrix(values, ("a", "b")), 0) == []


@pytest.mark.parametrize(
    ("values", "tasks", "sentence"),
    [
        (FIRST, ("x", "y", "z"), "68.7 % on average; earlier tasks lost 12.0 points on average"),
        ([[0, 0], [50, 0], [60, 40]], ("a", "b"), "50.0 % on average; earlier tasks gained 10.0 points on average"),
        ([[0, 0], [50, 0], [50, 40]], ("a", "b"), "45.0 % on average; earlier tasks lost nothing on average"),
        ([[0, 0], [NAN, NAN], [60, 40]], ("a", "b"), "50.0 % on average"),
        ([[0, 0], [50, 0], [NAN, 40]], ("a", "b"), ""),
        ([[0], [50]], ("a",), "50.0 % on its only task"),
    ],
)
def test_in_one_sentence_gives_mean_score_and_mean_change(values, tasks, sentence):
    assert in_one_sentence(verdicts(matrix(values, tasks))) == sentence


def test_tasks_that_did_not_drop_share_a_line():
    assert in_one_line(verdicts(matrix())[1:]) == "not lower than when learned: films 76.0, qa 60.0"
