"""Scores and verdicts as CSV: complete numbers, and no text that is read as a formula."""

import csv
import io

import numpy as np
import pytest

from gorp.report import scores_csv
from tests.report.matrices import judged, matrix


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_line_for_each_task_with_its_verdict_and_all_scores():
    news, films, _ = rows(scores_csv(matrix(), judged()))
    assert (news["task"], news["verdict"], news["change"], news["lost"]) == ("news", "hold", "-10.0", "12")
    assert [news[f"after {name}"] for name in ("base", "news", "films", "qa")] == ["10.0", "90.0", "95.0", "70.0"]
    assert films["verdict"] == films["old"] == films["rows"] == ""  # not judged


def test_numbers_are_not_rounded_and_what_is_missing_is_empty():
    third = matrix([[1 / 3], [np.nan]], ("a",))
    [line] = rows(scores_csv(third, None))
    assert float(line["after base"]) == 1 / 3 and line["after a"] == ""


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "=cmd|' /C calc'!A0"])
def test_a_name_is_never_a_formula(name):
    [line] = rows(scores_csv(matrix([[0.0], [50.0]], (name,)), judged(name)))
    assert line["task"] == f"'{name}" and line["verdict"] == "hold"


def test_commas_quotes_line_ends_and_control_characters_stay_in_one_cell():
    [line] = rows(scores_csv(matrix([[0.0], [50.0]], ('a,"b"\nc\x00',)), None))
    assert line["task"] == 'a,"b" c�'
