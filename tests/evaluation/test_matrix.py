import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gorp.errors import CheckpointError
from gorp.evaluation import AccuracyMatrix


def filled():
    matrix = AccuracyMatrix(["news", "films"])
    matrix.set(0, "news", 25.0, 400)
    matrix.set(1, "news", 200 / 3, 400)
    matrix.set(2, "news", 50.0, 400)
    matrix.set(2, "films", 75.0, 100)
    return matrix


def same(one, other):
    return one.tasks == other.tasks and one.rows == other.rows and np.array_equal(one.R, other.R, equal_nan=True)


@st.composite
def matrices(draw):
    names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
    tasks = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    matrix = AccuracyMatrix(tasks)
    for row in range(len(tasks) + 1):
        for task in tasks:
            score = draw(st.none() | st.floats(0.0, 100.0))
            if score is not None:
                matrix.set(row, task, score, draw(st.integers(1, 10**6)))
    return matrix


def test_a_new_matrix_has_one_row_more_than_tasks_and_only_nan():
    matrix = AccuracyMatrix(["news", "films", "qa"])
    assert matrix.R.shape == (4, 3) and np.isnan(matrix.R).all() and matrix.rows == {}


def test_set_changes_one_entry():
    matrix = filled()
    expected = [[25.0, np.nan], [200 / 3, np.nan], [50.0, 75.0]]
    assert np.array_equal(matrix.R, expected, equal_nan=True)
    assert matrix.rows == {"news": 400, "films": 100}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "newss", 1.0, 1), "no column `newss`.*Did you mean `news`"),
        ((3, "news", 1.0, 1), "got 3; wanted 0"),
        ((-1, "news", 1.0, 1), "got -1; wanted 0"),
        ((0, "news", 100.1, 1), "got 100.1 for `news`; wanted percent"),
        ((0, "news", float("nan"), 1), "got nan"),
        ((0, "news", 1.0, 0), "got 0 for `news`; wanted the number of evaluation rows"),
    ],
)
def test_set_refuses_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        filled().set(*arguments)


def test_duplicate_tasks_and_no_tasks_are_refused():
    for tasks in (["a", "a"], []):
        with pytest.raises(ValueError, match="each once"):
            AccuracyMatrix(tasks)


class TestCsv:
    def test_has_a_header_and_a_line_per_row(self, tmp_path):
        filled().to_csv(tmp_path / "matrix.csv")
        text = (tmp_path / "matrix.csv").read_text(encoding="utf-8")
        assert text == "after,news,films\nbase,25.0,\nnews,66.66666666666667,\nfilms,50.0,75.0\n"

    @settings(max_examples=40, deadline=None)
    @given(matrix=matrices())
    def test_reading_gives_the_written_numbers(self, matrix, tmp_path_factory):
        path = tmp_path_factory.mktemp("csv") / "matrix.csv"
        matrix.to_csv(path)
        with open(path, encoding="utf-8", newline="") as file:
            heading, *lines = csv.reader(file)
        assert heading == ["after", *matrix.tasks] and [name for name, *_ in lines] == ["base", *matrix.tasks]
        scores = [[float(score or "nan") for score in line[1:]] for line in lines]
        assert np.array_equal(scores, matrix.R, equal_nan=True)


class TestDict:
    @given(matrices())
    def test_survives_json(self, matrix):
        text = json.dumps(matrix.to_dict(), allow_nan=False)
        assert same(AccuracyMatrix.from_dict(json.loads(text)), matrix)

    @pytest.mark.parametrize(
        "value", [{}, {"tasks": ["a"], "R": [[1.0]], "rows": {}}, {"tasks": ["a"], "R": [[1.0], [2.0]], "rows": None}]
    )
    def test_refuses_another_shape(self, value):
        with pytest.raises(CheckpointError, match="not a score matrix"):
            AccuracyMatrix.from_dict(value)
