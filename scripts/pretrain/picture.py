"""The held-out perplexity over the tokens seen, as an SVG of its own."""

import math
from collections.abc import Sequence
from typing import Any


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 60, 20, 20, 50
"""Size of the picture and of its margins, in pixels."""


def perplexity_picture(curve: Sequence[dict[str, Any]]) -> str:
    """Draw the curve; the perplexity is on a logarithmic scale.

    Args:
        curve: Entries with `tokens` and `perplexity`, in order, at least one.

    Returns:
        The SVG.
    """
    most = max(entry["tokens"] for entry in curve) or 1
    values = [entry["perplexity"] for entry in curve]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def across(tokens: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * tokens / most

    def down(perplexity: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(perplexity)) / (high - low)

    lines = []
    for power in range(low, high):
        for digit in (1, 2, 5):
            at = down(value := digit * 10**power)
            lines.append(
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
                f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:,}</text>'
            )
    for quarter in range(5):
        tokens = most * quarter / 4
        at = f'x="{across(tokens):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle"'
        lines.append(f"<text {at}>{tokens / 1e6:.1f} M</text>")
    points = " ".join(f"{across(entry['tokens']):.1f},{down(entry['perplexity']):.1f}" for entry in curve)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#333"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(lines)}'
        f'<polyline points="{points}" fill="none" stroke="#1f6feb" stroke-width="2"/>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">tokens seen</text>'
        f'<text x="{WIDTH - RIGHT}" y="{TOP + 10}" text-anchor="end">held-out perplexity (log scale)</text></svg>\n'
    )
