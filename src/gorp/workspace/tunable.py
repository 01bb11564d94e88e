"""Options that may change between two tasks of a workspace; light, because `gorp status` asks too."""

TUNABLE: dict[str, tuple[str, ...]] = {
    "method": (
        "core_learning_rate",
        "scale",
        "refresh_every",
        "energy",
        "threshold",
        "memory_rows",
        "budget",
        "strength",
        "decay",
        "fisher_examples",
    ),
    "lora": ("lora_dropout",),
}
"""Options that say how the next task is learned and how much of it is kept. All others decide the shape or the meaning
of what earlier tasks left, or which weights are protected, and stay."""
