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
    "protection": "protection (S, frames, starting weights)",
    "gradients": "gradients",
    "optimizer": "optimizer state (AdamW)",
    "activations": "activations",
    "peak": "peak memory",
    "main_memory": "original weights, in main memory",
    "kept": "kept after the last task, at most",
}
"""Field -> what the line says."""


def headings_of(estimates: Mapping[str, Estimate]) -> list[str]:
    """The headings of the columns that `lines_of` fills."""
    return ["", *(HEADINGS[way] for way in estimates)]


def lines_of(estimates: Mapping[str, Estimate]) -> list[list[str]]:
    """The cells of the table, text."""
    ways = list(estimates.values())
    lines = [["trainable parameters", *(f"{way.trainable:,}" for way in ways)]]
    lines += [[label, *(bytes_of(getattr(way, field)) for way in ways)] for field, label in BYTES.items()]
    lines.append(["arithmetic of a step", *(f"{way.flops / 1e12:.3g} TFLOP" for way in ways)])
    lines.append(["time of a step", *(f"{way.seconds:.3g} s" for way in ways)])
    return lines


def bytes_of(size: int) -> str:
    """`size` in MiB, or GiB from ten of them on."""
    return f"{size / 2**30:,.1f} GiB" if size >= 10 * 2**30 else f"{size / 2**20:,.1f} MiB"
