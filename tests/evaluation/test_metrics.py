import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gorp.evaluation import FORMULAS, MEANINGS, AccuracyMatrix, seen_performance, summary


TASKS = ["a", "b", "c"]
ROWS = {"a": 100, "b": 300, "c": 600}
R = [
    [10.0, 20.0, 30.0],  # base
    [90.0, 25.0, 33.0],  # after a
    [95.0, 80.0, 36.0],  # after b
    [70.0, 76.0, 60.0],  # after c
]


def matrix(values=R, tasks=TASKS, rows=ROWS):
    made = AccuracyMatrix(tasks)
    made.R = np.array(values, dtype=np.float64)
    made.rows = dict(rows)
    return made


def test_metrics_have_the_hand_computed_values():
    expected = {
        "ap": (70 + 76 + 60) / 3,
        "bwt": ((70 - 90) + (76 - 80)) / 2,  # -12
        "forgetting": ((95 - 70) + (80 - 76)) / 2,  # 14.5: a was best after b; b's base and first row do not count
        "la": (90 + 80 + 60) / 3,
        "fwt": ((25 - 20) + (36 - 30)) / 2,  # 5.5
        "ap_weighted": (100 * 70 + 300 * 76 + 600 * 60) / 1000,  # 65.8
    }
    assert summary(matrix()) == pytest.approx(expected)


def test_the_best_score_may_come_from_before_a_task_was_learned():
    """The maximum is over all earlier trained models; here b scored best after a. The base model does not count."""
    values = [[99.0, 99.0, 99.0], [90.0, 85.0, 33.0], [95.0, 80.0, 36.0], [70.0, 76.0, 60.0]]
    assert summary(matrix(values))["forgetting"] == pytest.approx(((95 - 70) + (85 - 76)) / 2)


def test_one_task_has_performance_but_no_transfer():
    assert summary(matrix([[10.0], [80.0]], ["a"], {"a": 5})) == {
        "ap": 80.0,
        "bwt": None,
        "forgetting": None,
        "la": 80.0,
        "fwt": None,
        "ap_weighted": 80.0,
    }


@pytest.mark.parametrize(
    ("row", "column", "lost"),
    [
        (3, 0, {"ap", "bwt", "forgetting", "ap_weighted"}),
        (3, 2, {"ap", "la", "ap_weighted"}),
        (1, 0, {"bwt", "forgetting", "la"}),
        (2, 0, {"forgetting"}),
        (1, 1, {"forgetting", "fwt"}),
        (0, 1, {"fwt"}),
        (0, 0, set()),
        (1, 2, set()),
    ],
)
def test_a_missing_entry_removes_exactly_the_metrics_that_need_it(row, column, lost):
    values = np.array(R)
    values[row, column] = np.nan
    assert {name for name, value in summary(matrix(values)).items() if value is None} == lost


def test_without_row_counts_there_is_no_weighted_mean():
    assert summary(matrix(rows={"a": 1, "b": 1}))["ap_weighted"] is None


def test_with_equal_row_counts_the_means_agree():
    values = summary(matrix(rows={"a": 7, "b": 7, "c": 7}))
    assert values["ap_weighted"] == pytest.approx(values["ap"])


def test_seen_performance_has_the_hand_computed_values():
    assert seen_performance(np.array(R)) == pytest.approx([90.0, (95 + 80) / 2, (70 + 76 + 60) / 3])
    assert seen_performance(np.array([[np.nan] * 2, [50.0, np.nan], [np.nan, 60.0]])) == [50.0, None]


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_metrics_satisfy_their_inequalities_and_identities(count, seed):
    values = np.random.default_rng(seed).uniform(0, 100, (count + 1, count))
    found = summary(matrix(values, [str(index) for index in range(count)], {str(index): 3 for index in range(count)}))
    # AP = LA + (T - 1)/T · BWT: what is left is what was learned and what later tasks did to it
    assert found["ap"] == pytest.approx(found["la"] + (count - 1) / count * found["bwt"])
    assert found["forgetting"] >= -found["bwt"] - 1e-9  # the best is at least the score right after learning


def test_every_metric_has_a_formula_and_a_meaning():
    assert list(summary(matrix())) == list(FORMULAS) == list(MEANINGS)
