"""How names and numbers are written in every table, figure and page."""

import math

from gorp.evaluation import FORMULAS, AccuracyMatrix, summary


HEADINGS: dict[str, str] = {name: formula.split(" = ")[0] for name, formula in FORMULAS.items()}
"""Short name of each measure: AP, BWT, ..."""

MATRIX_READING = "R[i, j] is the score on task j after learning task i, in percent. Row 0 is the base model."
"""What R means, in one line, to stand with the formulas."""

NOT_MEASURED = "–"
"""Stands where there is no number."""


def number(value: float | None) -> str:
    """A score with one decimal and a proper minus, `–` for None and NaN."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    text = f"{value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def in_words(matrix: AccuracyMatrix) -> str:
    """What a method did, in one sentence: BWT, the change on the earlier tasks, and AP, the mean at the end."""
    measures = summary(matrix)
    end = f"{number(measures['ap'])} % on average at the end."
    change = measures["bwt"]
    if change is None:
        return end
    amount = number(abs(change))
    if amount == "0.0":
        return f"lost nothing on the earlier tasks; {end}"
    return f"{'lost' if change < 0 else 'gained'} {amount} points on the earlier tasks; {end}"
