"""What the gate found, in sentences."""

import math
from collections.abc import Mapping
from typing import Any

from gorp.workspace.guard_values import LEAST


CLEAR_RISE = 0.1
"""In nats per token. If the whole interval of a rise is above it and no margin is set, people are warned."""


def in_words(task: str, facts: Mapping[str, Any]) -> str:
    """Return one sentence on the verdict of a task."""
    if facts["verdict"] == "hold":
        return f"{task}: lost {facts['drop']:.1f} points; more than the margin, and not by chance"
    if facts["nothing_to_lose"]:
        return f"{task}: the old version answered no row right, so there was nothing to lose"
    if facts["verdict"] == "ship":
        return f"{task}: not worse by more than the margin"
    needed = facts["rows_needed"]
    rows = "more rows would not decide at this drop" if needed is None else f"about {needed:,} rows would decide"
    return f"{task}: {facts['rows']} rows are too few to tell; {rows}"


def remarks(task: str, found: Mapping[str, Any]) -> list[str]:
    """Return sentences on a task that do not follow from its verdict: noise, and right answers that became less likely.

    Args:
        task: Name of the task.
        found: The result of `gate`.
    """
    lines, noise, nll = [], (found["noise"] or {}).get(task), found["certainty"][task]["nll"]
    if noise is not None:
        wider = noise["standard_error"] > noise["margin"]
        lines.append(
            f"noise: {noise['flipped']} of {noise['rows']} answers turn right or wrong in other batches"
            + f", so the margin is {noise['standard_error']:.1f} points instead of {noise['margin']:g}" * wider
        )
    if nll is not None and nll["interval"][0] >= 0.005:  # less is written as 0.00
        low, high = nll["interval"]
        lines.append(
            f"the right answers are less likely than before: {nll['difference']:+.2f} nats per token ({low:+.2f} to "
            f"{high:+.2f}); this does not decide"
        )
    return lines


def perplexity(nll: float | None) -> str:
    """Return exp(nll), as it is written for people."""
    if nll is None:
        return "not finite"
    return f"{math.exp(nll):,.1f}" if nll < 20 else "above 400,000,000"


def level_in_words(found: Mapping[str, Any]) -> str:
    """Return a phrase on the guard text: how much of it, both perplexities, and the change.

    Args:
        found: The result of `gorp.workspace.guard_values.compare_guard`.
    """
    return f"guard text ({found['rows']:,} texts, {found['tokens']:,} tokens): {_change(found)}"


def since_base_in_words(found: Mapping[str, Any]) -> str:
    """Return a sentence on the guard text since the base model; empty if that is not another comparison.

    Args:
        found: The result of `gorp.workspace.gate.gate`.
    """
    base = found.get("guard_base")
    return "" if base is None else f"since {_older(base, found)}: {_change(base)}"


def guard_warnings(found: Mapping[str, Any]) -> list[str]:
    """Return a sentence if a version predicts the guard text clearly worse and no margin could have held it.

    Args:
        found: The result of `gorp.workspace.gate.gate`, or kept evidence.
    """
    guard = found.get("guard")
    if guard is None or guard["margin"] is not None:
        return []
    worse = [each for each in (guard, found.get("guard_base")) if each is not None and _clearly_worse(each)]
    if not worse:
        return []
    than = ", and than ".join(f"{_older(each, found)}: {_levels(each)}" for each in worse)
    enough = "" if guard["rows"] >= LEAST else f", with at least {LEAST} texts,"
    margin = f"`gate: {{guard_margin: {CLEAR_RISE:g}}}`{enough}"
    alone = worse[0] is not guard  # each step was small; a margin is compared with one step
    holds = f"{margin} holds a version whose own rise is clearly larger" if alone else f"{margin} would hold it"
    return [f"{found['new']['version']} predicts the guard text clearly worse than {than}; {holds}"]


def _clearly_worse(found: Mapping[str, Any]) -> bool:
    if found["interval"] is None:
        return found["new"] is None and found["old"] is not None
    return found["interval"][0] > CLEAR_RISE


def _older(compared: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return the name of the older version of a comparison."""
    return next(name for name in compared["values"] if name != found["new"]["version"])


def _levels(found: Mapping[str, Any]) -> str:
    return f"perplexity {perplexity(found['old'])} -> {perplexity(found['new'])}"


def _change(found: Mapping[str, Any]) -> str:
    if found["difference"] is None:
        return f"{_levels(found)}, no finite loss to compare"
    low, high = found["interval"]
    rise = f"{found['difference']:+.3f} nats per token (95 % interval {low:+.3f} to {high:+.3f})"
    return f"{_levels(found)}, {rise}"


def guard_in_words(found: Mapping[str, Any]) -> str:
    """Return one sentence on the guard text: `level_in_words`, and whether it decides.

    Args:
        found: The result of `gorp.workspace.guard_values.compare_guard`.
    """
    if found["margin"] is None:
        decides = "this does not decide"
    elif found["verdict"] == "hold":
        decides = f"worse by more than the margin of {found['margin']:g}, and not by chance"
    else:
        decides = f"not shown to be worse by more than the margin of {found['margin']:g}"
    return f"{level_in_words(found)}; {decides}"
