"""Sentences about the facts of an export, for the terminal and the model card."""

from collections.abc import Iterator, Mapping
from typing import Any

from gorp.report.wording import number


LEAK_SHOWN = 1e-3
"""A larger leak of the exported weights is reported with the way to avoid it."""


def size(count: int) -> str:
    """Return a number of bytes with a unit."""
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:,.1f} MB"


def sentences(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on the error of a truncation, the check, the answers, and the leak of what is served."""
    if "rank" in facts:
        yield from _truncation(facts)
    if check := facts.get("check"):
        yield _check(facts["form"], check)
    for task, item in facts.get("answers", {}).items():
        yield (
            f"{task}: {number(item['served'])} as the version was served, {number(item['exported'])} with base + "
            f"adapter; {item['differ']} of {item['rows']} answers differ"
        )
    yield from _leak(facts)


def _truncation(facts: Mapping[str, Any]) -> Iterator[str]:
    chosen = f" ({facts['why']})" if facts.get("why") else ""
    yield f"rank {facts['rank']}{chosen}, {len(facts['errors'])} layers"
    worst = max(facts["errors"], key=facts["errors"].__getitem__)
    yield (
        f"relative error ‖Δ − B A‖ / ‖Δ‖: {facts['error']:.1e} in total, {facts['errors'][worst]:.1e} at worst "
        f"({worst})"
    )


def _check(form: str, check: Mapping[str, Any]) -> str:
    reader = "transformers" if form == "merged" else "PEFT"
    rows = f"{check['rows']} {'prompts' if check['prompts'] else 'fixed rows of tokens'}"
    line = (
        f"checked: read back by {reader}, the logits of {rows} differ from what was written by "
        f"{check['difference']:.1e} of the largest"
    )
    if form == "merged":
        line += ", every weight is equal bit for bit"
    return f"{line}; from the live model by {check['live']:.1e}"


def _leak(facts: Mapping[str, Any]) -> Iterator[str]:
    leaks = facts.get("served_leak") or {}
    for task, leak in leaks.items():
        yield (
            f"served leak on {task}: worst {leak['worst']:.1e}, median {leak['median']:.1e}, over {leak['weights']} "
            "weights"
        )
    if any(leak["worst"] > LEAK_SHOWN for leak in leaks.values()):
        if facts["form"] == "lora":
            yield "the adapter acts on protected directions of earlier tasks: give a larger --rank, or --dtype float32"
        elif facts["dtype"] != "float32":
            yield (
                f"rounding to {facts['dtype']} acts on protected directions of earlier tasks; --dtype float32 or the "
                "factored form, --to lora, avoids that"
            )
        else:
            yield "later tasks were allowed to change these directions: see `released` and `leak` in `gorp status`"
