"""Warm-up, stable, decay: a learning rate that can be ended at any time.

Source: Hu et al. 2024, "MiniCPM", section 4. A run has a budget, in tokens or in seconds. With `f` the share of it
that is spent and `d` the share of the decay,

    rate(step, f) = min(1, (step + 1) / warmup) * min(1, (1 - f) / d).

To end a run early its budget is set to `spent / (1 - d)`: the decay then begins at once and takes its usual share.
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a run takes and where its decay begins."""

    unit: Literal["tokens", "seconds"]
    """What is counted: tokens, or seconds of wall clock since the first start."""
    total: float
    """The whole budget, in `unit`; over 0."""
    decay: float = 0.25
    """Share of the budget in which the learning rate falls to zero, over 0 and under 1."""
    warmup_steps: int = 20
    """Steps in which the learning rate rises; at least 1."""

    def fraction(self, spent: float) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return min(1.0, spent / self.total)

    def rate(self, step: int, spent: float) -> float:
        """Factor on the peak learning rate, 0 to 1."""
        rise = min(1.0, (step + 1) / self.warmup_steps)
        return rise * min(1.0, (1.0 - self.fraction(spent)) / self.decay)

    def ended_early(self, spent: float) -> "Budget":
        """Give the budget whose decay begins now; a decay that has begun goes on as it is."""
        return replace(self, total=min(self.total, spent / (1.0 - self.decay)))
