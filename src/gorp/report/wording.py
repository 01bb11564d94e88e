"""Format names and numbers for all tables, figures and pages."""

import math

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
