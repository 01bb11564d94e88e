"""The table of `gorp estimate`: a line for each quantity, a column for each way to train."""

from collections.abc import Mapping

from gorp.estimate.predict import Estimate


HEADINGS = {"lora": "LoRA on all linear layers", "full": "full AdamW"}
"""Headings of the columns that are not the YAML's method, which is called by its name."""

BYTES = {
    "weights": "weights",
    "trained": "adapters and cores",
    "protection": "state of the method on the device",
    "gradients": "gradients",
    "optimizer": "optimizer state (AdamW)",
    "activations": "activations",
    "peak": "peak memory",
    "main_memory": "base weights, in main memory",
    "kept": "kept after the last task, at most",
}
"""Field -> the label of its line."""


def headings_of(estimates: Mapping[str, Estimate]) -> list[str]:
    """Return the headings of the columns that `lines_of` fills."""
    return ["", *(HEADINGS.get(way, way) for way in estimates)]


def lines_of(estimates: Mapping[str, Estimate]) -> list[list[str]]:
    """Return the cells of the table as text."""
    ways = list(estimates.values())
    lines = [["trainable parameters", *(f"{way.trainable:,}" for way in ways)]]
    lines += [[label, *(bytes_of(getattr(way, field)) for way in ways)] for field, label in BYTES.items()]
    lines.append(["matrix products of a step", *(f"{way.flops / 1e12:.3g} TFLOP" for way in ways)])
    lines.append(["time of a step", *(f"{way.seconds:.3g} s" for way in ways)])
    return lines


def bytes_of(size: int) -> str:
    """Return `size` in MiB, or in GiB from ten of them on."""
    return f"{size / 2**30:,.1f} GiB" if size >= 10 * 2**30 else f"{size / 2**20:,.1f} MiB"
