"""How certain two versions are on the same rows: likelihood of the right answers, and calibration.

Both inform and do not decide. Answers that an older gorp recorded have neither number.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gorp.evaluation.calibration import expected_calibration_error, paired_difference
from gorp.workspace.flips import Answers


def certainty(pairs: Sequence[Answers]) -> dict[str, Any]:
    """Return what the recorded answers of two versions to one task say about their certainty.

    Returns:
        `nll`: over the rows that have it in both versions, their number `rows`, its mean `old` and `new` in nats per
        token, the `difference` new - old, and its 95 % bootstrap `interval`. `ece`: the calibration error `old` and
        `new`, in [0, 1], over the `rows` that have a probability in both. Either is None without such a row.
    """
    return {"nll": _nll(_with("nll", pairs)), "ece": _ece(_with("probability", pairs))}


def _with(key: str, pairs: Sequence[Answers]) -> Sequence[Answers]:
    return [(a, b) for a, b in pairs if a.get(key) is not None and b.get(key) is not None]


def _nll(pairs: Sequence[Answers]) -> dict[str, Any] | None:
    if not pairs:
        return None
    old, new = ([float(each["nll"]) for each in side] for side in zip(*pairs, strict=True))
    difference, interval = paired_difference(old, new)
    means = {"old": float(np.mean(old)), "new": float(np.mean(new))}
    return {"rows": len(pairs), **means, "difference": difference, "interval": list(interval)}


def _ece(pairs: Sequence[Answers]) -> dict[str, Any] | None:
    if not pairs:
        return None
    old, new = (
        expected_calibration_error([float(each["probability"]) for each in side], [each["correct"] for each in side])
        for side in zip(*pairs, strict=True)
    )
    return {"rows": len(pairs), "old": old, "new": new}
