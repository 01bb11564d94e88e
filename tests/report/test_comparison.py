import numpy as np
import pytest

from gorp.report import Spread, compare, spread
from gorp.report.comparison import panels, seen_over_tasks
from tests.report.matrices import FIRST, SECOND, matrix


def test_mean_and_sample_standard_deviation_by_hand():
    assert spread([1.0, 2.0, 6.0]) == Spread(mean=3.0, deviation=pytest.approx(7.0**0.5), seeds=3)


def test_one_seed_has_no_deviation():
    assert spread([4.0]) == Spread(mean=4.0, deviation=None, seeds=1)


def test_a_seed_without_a_value_leaves_no_mean():
    assert spread([1.0, None]) is None and spread([]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Spread(mean=68.66, deviation=None, seeds=1), "68.7"),
        (Spread(mean=-12.0, deviation=1.25, seeds=2), "−12.0 ± 1.2"),
        (Spread(mean=-0.01, deviation=0.0, seeds=2), "0.0 ± 0.0"),
    ],
)
def test_a_spread_is_printed_with_one_decimal(value, text):
    assert str(value) == text


def test_compare_by_hand():
    found = compare({"gorp": [matrix(FIRST), matrix(SECOND)], "ewc": [matrix(FIRST)]})
    assert found["gorp"]["ap"] == Spread(mean=pytest.approx((206 + 230) / 6), deviation=pytest.approx(32**0.5), seeds=2)
    assert found["gorp"]["bwt"] == Spread(mean=-8.5, deviation=pytest.approx(24.5**0.5), seeds=2)
    assert found["gorp"]["fwt"] == Spread(mean=5.5, deviation=0.0, seeds=2)
    assert found["ewc"]["forgetting"] == Spread(mean=14.5, deviation=None, seeds=1)


def test_seen_over_tasks_by_hand():
    means = [point.mean for point in seen_over_tasks([matrix(FIRST), matrix(SECOND)])]
    assert means == pytest.approx([90.0, 87.5, (206 + 230) / 6])


class TestPanels:
    def test_every_entry_is_averaged_over_seeds(self):
        shown = panels({"gorp": [matrix(FIRST), matrix(SECOND)]})
        assert np.array_equal(shown["gorp"].R[3], [76.0, 77.0, 65.0])

    def test_an_entry_missing_for_one_seed_is_missing_in_the_mean(self):
        incomplete = matrix()
        incomplete.R[1, 1] = np.nan
        assert np.isnan(panels({"gorp": [matrix(), incomplete]})["gorp"].R[1, 1])

    def test_different_sequences_are_not_averaged(self):
        shown = panels({"gorp": [matrix(), matrix(tasks=("qa", "films", "news"))]})
        assert [*shown] == ["gorp, run 1", "gorp, run 2"]


@pytest.mark.parametrize("runs", [{}, {"gorp": []}])
def test_a_comparison_without_matrices_is_refused(runs):
    with pytest.raises(ValueError, match="at least one method, each with at least one matrix"):
        compare(runs)
