"""Format names and numbers for all tables, figures and pages."""

import math
from collections.abc import Sequence

from gorp.evaluation import FORMULAS, AccuracyMatrix, summary


HEADINGS: dict[str, str] = {name: formula.split(" = ")[0] for name, formula in FORMULAS.items()}
"""Short name of each metric: AP, BWT, ..."""

MATRIX_READING = "R[i, j] is the score on task j after learning task i, in percent. Row 0 is the base model."
"""One-line definition of R, printed with the formulas."""

NOT_MEASURED = "–"
"""Printed in place of a missing number."""


def number(value: float | None) -> str:
    """Return a score with one decimal and the minus sign U+2212; `–` for None and NaN."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    text = f"{value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def in_words(matrix: AccuracyMatrix) -> str:
    """Return one sentence with BWT (change on the earlier tasks) and AP (mean score after the last task)."""
    metrics = summary(matrix)
    end = f"{number(metrics['ap'])} % on average at the end."
    change = metrics["bwt"]
    if change is None:
        return end
    amount = number(abs(change))
    if amount == "0.0":
        return f"lost nothing on the earlier tasks; {end}"
    return f"{'lost' if change < 0 else 'gained'} {amount} points on the earlier tasks; {end}"


def size(count: int) -> str:
    """Return a number of bytes as text: `0.1 MiB`, `2.4 GiB`."""
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    """Return a time as text: `12 s`, `3 min 20 s`, `5 h 2 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def signed(value: float) -> str:
    """Return points with their sign and one decimal: `+3.0`, `−2.5`, `0.0`."""
    text = number(value)
    return text if value <= 0 or text == "0.0" else f"+{text}"


def some(names: Sequence[str], most: int = 4) -> str:
    """Return names in a sentence: all of them, or the first `most` and how many more."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def clipped(text: str, longest: int) -> str:
    """Return text of at most `longest` characters; the middle of a longer one is replaced by what is left out."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} … ({len(text) - 2 * half:,} characters left out) … {text[-half:]}"
