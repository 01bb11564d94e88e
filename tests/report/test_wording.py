import pytest

from gorp.report.wording import in_words
from tests.report.matrices import FIRST, matrix


@pytest.mark.parametrize(
    ("values", "tasks", "sentence"),
    [
        (FIRST, ("news", "films", "qa"), "lost 12.0 points on the earlier tasks; 68.7 % on average at the end."),
        (
            [[0, 0], [50, 0], [60, 40]],
            ("a", "b"),
            "gained 10.0 points on the earlier tasks; 50.0 % on average at the end.",
        ),
        ([[0, 0], [50, 0], [50, 40]], ("a", "b"), "lost nothing on the earlier tasks; 45.0 % on average at the end."),
        ([[0], [50]], ("a",), "50.0 % on average at the end."),
    ],
)
def test_in_words_gives_bwt_and_ap_in_one_sentence(values, tasks, sentence):
    assert in_words(matrix(values, tasks)) == sentence
