"""An estimate as lines of a table, a quantity a line, a way to train a column."""

from collections.abc import Mapping

from gorp.estimate.predict import Estimate


HEADINGS = {
    "protected_full": "protected_full",
    "gorp": "gorp",
    "lora": "LoRA on all linear layers",
    "full": "full AdamW",
}
"""Way to train -> the heading of its column."""

BYTES = {
    "weights": "weights",
    "trained": "adapters and cores",
    "protection": "S, frames, W at a task's start",
    "gradients": "gradients",
    "optimizer": "AdamW's moments",
    "activations": "activations kept for the backward pass",
    "peak": "peak memory",
    "main_memory": "W₀ in main memory",
    "kept": "kept after the last task, at most",
    "kept_limit": "kept after any number of tasks, at most",
    "kept_each": "and readings, for each task",
}
"""Field -> what the line says."""


def headings_of(estimates: Mapping[str, Estimate]) -> list[str]:
    """The headings of the columns that `lines_of` fills."""
    return ["per rank", *(HEADINGS[way] for way in estimates)]


def lines_of(estimates: Mapping[str, Estimate]) -> list[list[str]]:
    """The cells of the table, text."""
    ways = list(estimates.values())
    lines = [["trainable numbers", *(f"{way.trainable:,}" for way in ways)]]
    lines += [[label, *(bytes_of(getattr(way, field)) for way in ways)] for field, label in BYTES.items()]
    lines.append(["matrix products of a step", *(f"{way.flops / 1e12:.3f} TFLOP" for way in ways)])
    lines.append(["time of a step", *(f"{way.seconds:.3g} s" for way in ways)])
    return lines


def bytes_of(size: int) -> str:
    """`size` in MiB, or GiB from ten of them on."""
    return f"{size / 2**30:,.1f} GiB" if size >= 10 * 2**30 else f"{size / 2**20:,.1f} MiB"
