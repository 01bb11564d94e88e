import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial, norm

from gorp.evaluation.paired import (
    Flips,
    any_loss,
    holm,
    inferior,
    interval,
    not_inferior,
    rows_needed,
    together,
    verdicts,
)


counts = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 200))
flips = counts.map(lambda c: Flips(rows=c[0] + c[1] + c[2], lost=c[0], won=c[1]))


def test_any_loss_is_the_share_of_equally_likely_flips_that_lose_as_many():
    # 3 lost, 1 won: P(X >= 3), X ~ Bin(4, 1/2) = (4 + 1) / 16
    assert any_loss(Flips(rows=50, lost=3, won=1)) == pytest.approx(5 / 16)
    assert any_loss(Flips(rows=50, lost=0, won=0)) == 1.0  # no flip says nothing


@pytest.mark.parametrize(("lost", "won", "n"), [(12, 2, 50), (3, 5, 40), (1, 0, 30), (10, 9, 200)])
@pytest.mark.parametrize("theta", [-0.2, -0.03, 0.02, 0.15])
def test_the_score_uses_the_most_likely_rates_that_differ_by_theta(lost, won, n, theta):
    def unlikely(q):  # minus the log-likelihood with p_c = q and p_b = q + θ
        rates = np.array([q + theta, q, 1 - 2 * q - theta])
        return -float((np.array([lost, won, n - lost - won]) * np.log(rates)).sum())

    found = minimize_scalar(
        unlikely, bounds=(max(0.0, -theta) + 1e-9, (1 - theta) / 2 - 1e-9), options={"xatol": 1e-12}, method="bounded"
    )
    z = (lost - won - n * theta) / math.sqrt(n * (2 * found.x + theta - theta**2))
    assert norm.isf(inferior(Flips(rows=n, lost=lost, won=won), theta)) == pytest.approx(z, abs=2e-3)


def test_without_a_flip_the_score_has_a_closed_form():
    n, margin = 80, 0.03
    score = math.sqrt(n * margin / (1 - margin))
    assert inferior(Flips(rows=n, lost=0, won=0), margin) == pytest.approx(norm.cdf(score))
    assert not_inferior(Flips(rows=n, lost=0, won=0), margin) == pytest.approx(0.97**80)  # exact, and larger


@given(flips, st.floats(0.005, 0.3))
def test_not_inferior_and_the_interval_agree(outcome, margin):
    _, high = interval(outcome, confidence=0.9)  # two-sided 90 %: one-sided 5 %
    if abs(high - margin) > 1e-6 and outcome.won:
        assert (not_inferior(outcome, margin) <= 0.05) == (high < margin)


@given(flips)
def test_the_interval_holds_the_estimate_and_mirrors_when_the_versions_are_swapped(outcome):
    low, high = interval(outcome)
    assert -1 <= low <= outcome.drop + 1e-9 and outcome.drop - 1e-9 <= high <= 1
    swapped = interval(Flips(rows=outcome.rows, lost=outcome.won, won=outcome.lost))
    assert swapped == pytest.approx((-high, -low), abs=1e-8)


@pytest.mark.parametrize(("p_lost", "p_won"), [(0.05, 0.0), (0.06, 0.01), (0.08, 0.03), (0.15, 0.10)])
def test_a_version_worse_by_the_margin_passes_in_about_one_of_twenty_cases(p_lost, p_won):
    # Exact probability that the test rejects when θ is the margin, by summing over all outcomes of 60 rows.
    n, margin = 60, 0.05
    total = 0.0
    for lost in range(n + 1):
        for won in range(n + 1 - lost):
            if not_inferior(Flips(rows=n, lost=lost, won=won), margin) <= 0.05:
                total += multinomial.pmf([lost, won, n - lost - won], n, [p_lost, p_won, 1 - p_lost - p_won])
    assert total <= 0.07


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Flips(rows=149, lost=0, won=0), "ship"),
        (Flips(rows=148, lost=0, won=0), "inconclusive"),  # 0.98¹⁴⁸ = 0.0503
        (Flips(rows=70, lost=12, won=1), "hold"),
        (Flips(rows=1000, lost=10, won=0), "ship"),  # significantly worse, but by 1 point: within the margin
        (Flips(rows=100, lost=3, won=0), "inconclusive"),
        (Flips(rows=10_000, lost=210, won=0), "inconclusive"),  # 2.1 points: certainly a loss, but of 2 or more?
        (Flips(rows=0, lost=0, won=0), "inconclusive"),
        (Flips(rows=50, lost=0, won=20), "ship"),
        (Flips(rows=100, lost=10, won=10), "inconclusive"),
    ],
)
def test_the_verdict_at_a_margin_of_two_points(outcome, verdict):
    assert verdicts([outcome], [0.02]) == [verdict]


def test_one_of_many_tasks_that_looks_worse_by_chance_does_not_hold_a_version():
    bad = Flips(rows=60, lost=6, won=0)  # p = 0.015
    assert verdicts([bad], [0.02]) == ["hold"]
    same = Flips(rows=200, lost=0, won=0)
    assert verdicts([bad, same, same, same], [0.02] * 4) == ["inconclusive", "ship", "ship", "ship"]
    assert together(["ship", "hold", "inconclusive"]) == "hold"
    assert together(["ship", "inconclusive"]) == "inconclusive" and together([]) == "ship"


def test_rows_needed_decide_and_one_row_fewer_does_not():
    for outcome in (Flips(rows=40, lost=0, won=0), Flips(rows=100, lost=1, won=1), Flips(rows=60, lost=2, won=1)):
        needed = rows_needed(outcome, 0.02)
        assert needed is not None and needed > outcome.rows
        scaled = [
            Flips(rows=n, lost=round(outcome.lost / outcome.rows * n), won=round(outcome.won / outcome.rows * n))
            for n in (needed, needed - 1)
        ]
        assert verdicts(scaled[:1], [0.02]) != ["inconclusive"] and verdicts(scaled[1:], [0.02]) == ["inconclusive"]
    few = Flips(rows=40, lost=5, won=0)  # would be held alone, not among ten tasks
    assert verdicts([few], [0.02]) == ["hold"]
    assert (rows_needed(few, 0.02, tasks=10) or 0) > 40
    assert rows_needed(Flips(rows=100, lost=2, won=0), 0.02) is None  # the drop is the margin


def test_flips_are_counted_by_row():
    old, new = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 0], bool)
    assert Flips.of(old.tolist(), new.tolist()) == Flips(rows=5, lost=2, won=1)
