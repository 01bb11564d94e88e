"""Compare two versions on the same rows of a task: is the new one worse, and is it not worse by more than a margin?

Of n rows, b were right with the old version and are wrong with the new one, c the other way round. The drop is

    θ = p_b - p_c,   estimated by (b - c) / n

    worse            H₀: θ <= 0, rejected by McNemar's exact test: b of b + c flips, each way equally likely under H₀
    not inferior     H₀: θ >= δ, rejected by Tango's score test for the difference of two paired proportions

A task is `hold` if the drop exceeds the margin δ and the new version is significantly worse, `ship` if it is shown not
to be inferior, and `inconclusive` if neither; then the number of rows that would decide is given.

Sources: McNemar 1947; Tango 1998, Statistics in Medicine 17, 891-908; Holm 1979, Scandinavian Journal of Statistics 6.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm


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


def worse(flips: Flips) -> float:
    """Return the p-value of H₀: the new version is not worse. McNemar's exact test, one-sided.

    Example:
        >>> worse(Flips(rows=100, lost=5, won=0))  # (1/2)⁵
        0.03125
    """
    total = flips.lost + flips.won
    return float(binomtest(flips.lost, total, 0.5, alternative="greater").pvalue) if total else 1.0


def not_inferior(flips: Flips, margin: float) -> float:
    """Return the p-value of H₀: the drop is at least `margin`. Tango's score test.

    Args:
        flips: The outcome; without rows the result is 1.
        margin: δ, in (0, 1).

    Example:
        >>> round(not_inferior(Flips(rows=133, lost=0, won=0), 0.02), 4)  # no flip: Φ(-√(n δ / (1 - δ)))
        0.0497
    """
    return float(norm.cdf(_score(flips.lost, flips.won, flips.rows, margin))) if flips.rows else 1.0


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


def rows_needed(flips: Flips, margin: float, *, level: float = 0.05) -> int | None:
    """Return the number of rows, n in all, that would decide if flips kept their present rates.

    Args:
        flips: What was observed; without rows, the rates are taken to be 0.
        margin: δ.
        level: α.

    Returns:
        The smallest such number; None if no number up to `MOST_ROWS` decides, because the drop is as large as the
        margin to within what rows can show.

    Example:
        >>> rows_needed(Flips(rows=40, lost=0, won=0), 0.02)
        133
    """
    n = max(flips.rows, 1)
    rates = flips.lost / n, flips.won / n

    def decides(rows: int) -> bool:
        scaled = Flips(rows=rows, lost=round(rates[0] * rows), won=round(rates[1] * rows))
        return _verdict(scaled, margin, worse(scaled), level) != "inconclusive"

    high = n
    while not decides(high):
        high *= 2
        if high > MOST_ROWS:
            return None
    low = high // 2
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
    """Return the verdict of each task.

    `hold` needs a p-value of `worse`, adjusted by Holm over the tasks, of at most `level`: with many tasks one would
    look worse by chance. `ship` needs no adjustment: a version ships only if every task passes, and the probability
    that a task passes wrongly is at most `level` for each.
    """
    adjusted = holm([worse(flips) for flips in outcomes])
    return [_verdict(f, margin, p, level) for f, margin, p in zip(outcomes, margins, adjusted, strict=True)]


def together(each: Sequence[Verdict]) -> Verdict:
    """Return the verdict over all tasks: hold if any is, else inconclusive if any is; ship without earlier tasks."""
    return "hold" if "hold" in each else "inconclusive" if "inconclusive" in each else "ship"


def _verdict(flips: Flips, margin: float, p_worse: float, level: float) -> Verdict:
    if flips.drop > margin and p_worse <= level:
        return "hold"
    return "ship" if not_inferior(flips, margin) <= level else "inconclusive"


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
