import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gorp.evaluation.calibration import expected_calibration_error, paired_difference


def test_the_error_of_six_rows_in_three_bins_by_hand():
    # Of 15 bins: 0.05 in the first; 0.5, 0.52 in (7/15, 8/15]; 0.9 (twice), 0.93 in (13/15, 14/15].
    probabilities, right = [0.05, 0.5, 0.52, 0.9, 0.9, 0.93], [False, True, True, True, False, True]
    wanted = 1 / 6 * 0.05 + 2 / 6 * (1 - 0.51) + 3 / 6 * (0.91 - 2 / 3)
    assert expected_calibration_error(probabilities, right) == pytest.approx(wanted)


def test_the_edges_belong_to_the_bin_below_and_nothing_gives_none():
    # 0.2 = 3/15 is in the third bin, with 0.19; a bin of its own would give 0.2 / 2 + 0.81 / 2.
    assert expected_calibration_error([0.2, 0.19], [False, True]) == pytest.approx(abs(1 - 0.39) / 2)
    assert expected_calibration_error([0.0, 1.0], [False, True]) == 0.0
    assert expected_calibration_error([], []) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 20))
def test_the_error_is_that_of_a_loop_over_the_bins(rows, bins):
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [(p, ok) for p, ok in rows if np.clip(np.ceil(p * bins), 1, bins) == number + 1]
        assert all(low - 1e-9 <= p <= high + 1e-9 for p, _ in inside)
        if inside:
            total += abs(sum(p for p, _ in inside) - sum(ok for _, ok in inside)) / len(rows)
    assert expected_calibration_error(*zip(*rows, strict=True), bins=bins) == pytest.approx(total, abs=1e-12)
    assert 0 <= total <= 1


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution_for_many_rows():
    random = np.random.default_rng(1)
    old = random.exponential(size=4000)
    new = old + random.normal(0.1, 0.5, size=4000)
    mean, (low, high) = paired_difference(old, new)
    assert mean == pytest.approx(np.mean(new - old))
    half = 1.96 * np.std(new - old) / np.sqrt(4000)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.15 * half)
    assert paired_difference(old, new) == (mean, (low, high))  # the seed is fixed


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_equal_differences_have_an_interval_without_width(rows):
    assert paired_difference([1.0] * rows, [1.5] * rows) == (0.5, (0.5, 0.5))
