"""Compare two versions on the same rows of a task: is the new one worse by more than a margin, or shown not to be?

Of n rows, b were right with the old version and are wrong with the new one, c the other way round. The drop is

    θ = p_b - p_c,   estimated by (b - c) / n

    inferior         H₀: θ <= δ, rejected by Tango's score test for the difference of two paired proportions
    not inferior     H₀: θ >= δ, rejected by the same test; without a row won, also by the exact binomial test
    any loss         H₀: θ <= 0, McNemar's exact test: b of b + c flips, each way equally likely; reported only

A task is `hold` if the new version is shown to be inferior, `ship` if it is shown not to be, and `inconclusive` if
neither; then the number of rows that would decide is given.

Sources: McNemar 1947; Tango 1998, Statistics in Medicine 17, 891-908; Holm 1979, Scandinavian Journal of Statistics 6.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm


Verdict = Literal["ship", "hold", "inconclusive"]

MOST_ROWS = 10_000_000
"""Largest number of rows that `rows_needed` names."""


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Outcome of two versions on the same rows, each answer right or wrong."""

    rows: int
    """n."""
    lost: int
    """b: right with the old version, wrong with the new one."""
    won: int
    """c: wrong with the old version, right with the new one."""

    @classmethod
    def of(cls, old: Sequence[bool], new: Sequence[bool]) -> "Flips":
        """Count the flips of rows in the same order.

        Example:
            >>> Flips.of([True, True, False, False], [True, False, True, False])
            Flips(rows=4, lost=1, won=1)
        """
        pairs = list(zip(old, new, strict=True))
        lost, won = (sum(a == before and b != before for a, b in pairs) for before in (True, False))
        return cls(rows=len(pairs), lost=lost, won=won)

    @property
    def drop(self) -> float:
        """(b - c) / n, in [-1, 1]; 0 without rows."""
        return (self.lost - self.won) / self.rows if self.rows else 0.0


def any_loss(flips: Flips) -> float:
    """Return the p-value of H₀: the new version is not worse at all. McNemar's exact test, one-sided.

    Example:
        >>> any_loss(Flips(rows=100, lost=5, won=0))  # (1/2)⁵
        0.03125
    """
    total = flips.lost + flips.won
    return float(binomtest(flips.lost, total, 0.5, alternative="greater").pvalue) if total else 1.0


def inferior(flips: Flips, margin: float) -> float:
    """Return the p-value of H₀: the drop is at most `margin`. Tango's score test; without rows the result is 1."""
    return float(norm.sf(_score(flips.lost, flips.won, flips.rows, margin))) if flips.rows else 1.0


def not_inferior(flips: Flips, margin: float) -> float:
    """Return the p-value of H₀: the drop is at least `margin`. Tango's score test, and an exact one without a row won.

    Without a row won, p_b >= δ under H₀, so b or fewer losses have a probability of at most P(X <= b), X ~ Bin(n, δ).
    The larger of the two values is returned: with few flips the score test rejects in more than 5 of 100 cases.

    Args:
        flips: The outcome; without rows the result is 1.
        margin: δ, in (0, 1).

    Example:
        >>> round(not_inferior(Flips(rows=149, lost=0, won=0), 0.02), 4)  # (1 - δ)¹⁴⁹
        0.0493
    """
    if not flips.rows:
        return 1.0
    exact = float(binom.cdf(flips.lost, flips.rows, margin)) if flips.won == 0 else 0.0
    return max(exact, float(norm.cdf(_score(flips.lost, flips.won, flips.rows, margin))))


def interval(flips: Flips, confidence: float = 0.95) -> tuple[float, float]:
    """Return Tango's two-sided confidence interval of the drop: all θ that the score test does not reject.

    Without rows it is [-1, 1].
    """
    if not flips.rows:
        return -1.0, 1.0
    z, edge = float(norm.ppf(0.5 + confidence / 2)), 1 - 1e-12

    def low(theta: float) -> float:
        return _score(flips.lost, flips.won, flips.rows, theta) - z

    def high(theta: float) -> float:
        return _score(flips.lost, flips.won, flips.rows, theta) + z

    # The score falls in θ from +∞ at -1 to -∞ at 1, except where all rows flipped one way: then θ may be the edge.
    root: Any = brentq  # its declared result depends on options that are not used here
    lower = -1.0 if low(-edge) <= 0 else float(root(low, -edge, edge))
    upper = 1.0 if high(edge) >= 0 else float(root(high, -edge, edge))
    return lower, upper


def rows_needed(flips: Flips, margin: float, *, tasks: int = 1, level: float = 0.05) -> int | None:
    """Return about how many rows, n in all, would decide if flips kept their present rates.

    Args:
        flips: What was observed; without rows, the rates are taken to be 0.
        margin: δ.
        tasks: Number of tasks, by which Holm's method multiplies the smallest p-value of `inferior`.
        level: α.

    Returns:
        A number of rows, more than there are, that decides; None if no number up to `MOST_ROWS` does, because the drop
        is as large as the margin to within what rows can show.

    Example:
        >>> rows_needed(Flips(rows=40, lost=0, won=0), 0.02)
        149
    """
    n = max(flips.rows, 1)
    rates = flips.lost / n, flips.won / n

    def decides(rows: int) -> bool:
        scaled = Flips(rows=rows, lost=round(rates[0] * rows), won=round(rates[1] * rows))
        return min(tasks * inferior(scaled, margin), not_inferior(scaled, margin)) <= level

    low, high = n, 2 * n  # `low` does not decide
    while not decides(high):
        low, high = high, 2 * high
        if high > MOST_ROWS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's method, in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order, adjusted, largest = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def verdicts(outcomes: Sequence[Flips], margins: Sequence[float], *, level: float = 0.05) -> list[Verdict]:
    """Return the verdict of each task; `margins` has its δ, in the same order.

    `hold` needs a p-value of `inferior`, adjusted by Holm over the tasks, of at most `level`: with many tasks one would
    look worse by chance. `ship` needs no adjustment: a version ships only if every task passes, and the probability
    that a task passes wrongly is at most `level` for each.
    """
    held = holm([inferior(flips, margin) for flips, margin in zip(outcomes, margins, strict=True)])
    return [
        "hold" if p <= level else "ship" if not_inferior(flips, margin) <= level else "inconclusive"
        for flips, margin, p in zip(outcomes, margins, held, strict=True)
    ]


def together(each: Sequence[Verdict]) -> Verdict:
    """Return the verdict over all tasks: hold if any is, else inconclusive if any is; ship without earlier tasks."""
    return "hold" if "hold" in each else "inconclusive" if "inconclusive" in each else "ship"


def _score(lost: float, won: float, n: int, theta: float) -> float:
    """Return (b - c - n θ) / √(n (2 q + θ (1 - θ))), with q the maximum-likelihood estimate of p_c given θ."""
    if theta < 0:  # by symmetry, where the formula of q is stable
        return -_score(won, lost, n, -theta)
    quadratic, linear = 2 * n, -lost - won + (2 * n - lost + won) * theta
    constant = -won * theta * (1 - theta)
    q = (math.sqrt(max(0.0, linear**2 - 4 * quadratic * constant)) - linear) / (2 * quadratic)
    variance, difference = n * (2 * q + theta * (1 - theta)), lost - won - n * theta
    if variance <= 0:
        return 0.0 if difference == 0 else math.copysign(math.inf, difference)
    return difference / math.sqrt(variance)
