"""How well a model's certainty fits its answers, and how two models differ on the same rows.

Source of the calibration error: Guo et al., *On Calibration of Modern Neural Networks*, arXiv:1706.04599.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap


BINS = 15
"""Bins of equal width between 0 and 1."""

RESAMPLES = 2000
"""Draws of the bootstrap. At 2000 the ends of a 95 % interval vary by a few percent of its width with the seed."""


def expected_calibration_error(
    probabilities: Sequence[float], right: Sequence[bool], *, bins: int = BINS
) -> float | None:
    """Return how far a model's certainty is from its rate of right answers, in [0, 1]; None without rows.

        ECE = Σ_b (n_b / n) |right answers in b / n_b - mean probability in b|

    Args:
        probabilities: The probability that the model gave to its own answer to each row. Bin b holds those in
            ((b - 1) / bins, b / bins], the first also 0.
        right: Whether the answer was right.
        bins: Number of bins.

    Example:
        >>> expected_calibration_error([0.9, 0.9], [True, False])  # certain to 90 %, right in 50 %
        0.4
    """
    p, hits = np.asarray(probabilities, dtype=float), np.asarray(right, dtype=float)
    if not len(p):
        return None
    which = np.clip(np.ceil(p * bins), 1, bins).astype(int)
    gaps = np.bincount(which, weights=hits - p, minlength=bins + 1)  # n_b times the difference of the two means
    return float(np.abs(gaps).sum() / len(p))


def paired_difference(
    old: Sequence[float],
    new: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    quantiles: Sequence[float] = (0.025, 0.975),
) -> tuple[float, tuple[float, ...]]:
    """Return the mean of new - old over the same rows, and quantiles of its bootstrap distribution (fixed seed).

    Rows are drawn with their pair, so what makes a row hard for both models does not widen the interval. With one row
    every quantile is the difference itself.

    Args:
        old: One value for each row, at least one.
        new: The same rows.
        weights: Of the rows in the mean, for example their tokens; a row is drawn with its weight. None: all are equal.
        quantiles: In [0, 1]; the default ones are the ends of a 95 % interval.
    """
    differences = np.asarray(new, dtype=float) - np.asarray(old, dtype=float)
    shares = np.ones_like(differences) if weights is None else np.asarray(weights, dtype=float)
    mean = float(_weighted_mean(differences, shares))
    if len(differences) == 1 or np.ptp(differences) == 0:
        return mean, (mean,) * len(quantiles)
    found = bootstrap(
        (differences, shares),
        _weighted_mean,
        paired=True,
        n_resamples=RESAMPLES,
        batch=100,  # 100 draws in memory at a time
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return mean, tuple(np.quantile(found.bootstrap_distribution, quantiles).tolist())


def _weighted_mean(values: np.ndarray, weights: np.ndarray, axis: int = -1) -> np.ndarray:
    return (values * weights).sum(axis=axis) / weights.sum(axis=axis)
