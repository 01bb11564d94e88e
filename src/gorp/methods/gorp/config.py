"""The options of GORP, and what each mode makes of those that are left open."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from gorp.errors import ConfigError
from gorp.methods.base import MethodConfig
from gorp.ranges import BELOW_ONE, BETWEEN_TASKS, COUNT, NOT_NEGATIVE, POSITIVE, WIDEST, Range


MODE_DEFAULTS: dict[str, dict[str, Any]] = {
    "strict": {
        "projection": "both",
        "adapter": "fresh",
        "adapter_rows": "aligned",
        "memory_source": "inputs",
        "energy": 0.995,
        "moments": "rotate",
        "staggered": True,
        "power_steps": 0,
        "budget": 0.75,
    },
    "paper": {
        "projection": "gradient",
        "adapter": "shared",
        "adapter_rows": "trained",
        "memory_source": "moment",
        "energy": 0.97,
        "moments": "keep",
        "staggered": False,
        "power_steps": 1,
        "budget": 1.0,
    },
}
"""What `None` means in each mode. `docs/equations.md` gives the reason for every one."""


@dataclass(frozen=True, kw_only=True)
class GorpConfig(MethodConfig):
    """Options of GORP. A field whose default is None takes the mode's value from `MODE_DEFAULTS`.

    Example:
        >>> from gorp import GorpConfig
        >>> config = GorpConfig(budget=0.5).resolved()
        >>> config.adapter, config.memory_source, config.budget
        ('fresh', 'inputs', 0.5)
    """

    mode: Literal["strict", "paper"] = "strict"
    """`strict`: the protected directions are exact whatever the optimizer does. `paper`: the published equations."""
    full_modules: tuple[str, ...] | str = "auto"
    """Layers whose full weight is trained through a core: "auto" (the preset of the model's family), "all-linear",
    "none", or patterns. (Paper: T5's cross-attention, LLaMA's MLP gate.)"""
    rank: Annotated[int, Range(1, WIDEST)] = 8
    """k: the core C is k x k. (Paper: 8.)"""
    refresh_every: Annotated[int, COUNT, BETWEEN_TASKS] = 10
    """T: optimizer steps between two refreshes of a frame. (Paper: 10.)"""
    core_learning_rate: Annotated[float, NOT_NEGATIVE, BETWEEN_TASKS] | None = None
    """Learning rate of the cores; None is the learning rate of the adapters. (Paper, T5: 1e-5 beside 1e-3.)"""
    scale: Annotated[float, POSITIVE, BETWEEN_TASKS] = 1.0
    """α in W ← W - η α U N Vᵀ. (Paper: not stated.)"""
    energy: Annotated[float, BELOW_ONE, BETWEEN_TASKS] | None = None
    """ε, where gradients are remembered: fraction of a task's squared norm that the shared space holds afterwards, in
    [0, 1). (Paper: not stated.)"""
    budget: Annotated[float, Range(0, 1, open_low=True), BETWEEN_TASKS] | None = None
    """Largest share of a weight's inputs that may be protected, in (0, 1]."""
    memory_source: Literal["moment", "sketch", "inputs"] | None = None
    """What of a task is remembered: Adam's first moment at its end (paper), a sketch of its gradients, fed at each
    refresh, or its inputs, read once more at its end."""
    memory_rows: Annotated[int, Range(1, WIDEST), BETWEEN_TASKS] = 256
    """With `memory_source: inputs`: rows of the task that are read, drawn at random."""
    threshold: Annotated[float, POSITIVE, BETWEEN_TASKS] = 0.6
    """τ, with `memory_source: inputs`: a direction is protected if the task's inputs have more along it than τ times
    what they have along an average direction, times the share of the directions that is protected by then."""
    sketch_size: Annotated[int, Range(1, WIDEST)] = 128
    """Rows that the sketch keeps for a weight."""
    projection: Literal["gradient", "both"] | None = None
    """What is projected in the LoRA branch: A's gradient (paper mode only), or A's gradient and A after the step."""
    adapter: Literal["fresh", "shared"] | None = None
    """A fresh LoRA pair for each task, folded at its end, or one pair for all tasks. (Paper: not stated.)"""
    adapter_rows: Literal["aligned", "trained"] | None = None
    """The rows of A from the second task on. `aligned`: the task's leading inputs outside S, fixed, and B alone is
    trained, at twice the learning rate. `trained`: random ones outside S, trained with B, each step projected. (Paper:
    trained.)"""
    adapter_side: Literal["input", "rank"] = "input"
    """Paper mode: coordinates of S for A, n input dimensions or r rows. (Paper: not stated; r leaves no room.)"""
    moments: Literal["rotate", "keep", "reset"] | None = None
    """The optimizer's moments of a core when its frame changes: carried into the new frame, left, or begun anew; see
    `gorp.core.moments`. (Paper: not stated; GaLore keeps them.)"""
    staggered: bool | None = None
    """Whether layers refresh their frames at different steps. (Paper: all together.)"""
    oversampling: Annotated[int, Range(0, 1000)] = 8
    """Extra columns of the sketched frame beyond k."""
    power_steps: Annotated[int, Range(0, 100)] | None = None
    """Power iterations of the sketched frame, beside the half one that it always makes. (Paper: an exact SVD.)"""
    recompress: Annotated[float, BELOW_ONE] = 1e-6
    """Relative error allowed when a finished task's factors are shortened; its row space never grows."""

    def __post_init__(self) -> None:
        """Refuse what does not go together, before anything is loaded."""
        super().__post_init__()
        if self.mode == "strict" and self.projection == "gradient":
            raise ConfigError(
                "method.projection: gradient is for paper mode: Adam divides the gradient entry by entry, and its step "
                "then leads back into S. Use `projection: both`, or `mode: paper`."
            )
        if self.mode == "strict" and self.adapter == "shared":
            raise ConfigError(
                "method.adapter: shared is for paper mode: with one pair, B moves old inputs whatever A does. "
                "Use `adapter: fresh`, or `mode: paper`."
            )
        if self.mode == "paper" and self.adapter_rows == "aligned":
            raise ConfigError(
                "method.adapter_rows: aligned is for strict mode: paper mode trains one pair A, B through all tasks. "
                "Use `adapter_rows: trained`, or `mode: strict`."
            )
        if self.memory_source == "moment" and self.adapter_rows == "aligned":
            raise ConfigError(
                "method.memory_source: moment remembers a task by the optimizer's first moment of A, and with "
                "adapter_rows: aligned A is not trained. Use `adapter_rows: trained`, or `memory_source: inputs`."
            )
        if self.mode == "strict" and self.adapter_side == "rank":
            raise ConfigError(
                "method.adapter_side: rank is for paper mode: what it protects are rows of A, not inputs, and those of "
                "one task mean nothing to the next one's fresh pair. Use `adapter_side: input`, or `mode: paper`."
            )

    def resolved(self) -> "GorpConfig":
        """The same with every None that the mode decides filled in."""
        open_fields = {f.name for f in fields(self) if getattr(self, f.name) is None}
        defaults = dict(MODE_DEFAULTS[self.mode])
        if self.memory_source == "moment":  # which is A's
            defaults["adapter_rows"] = "trained"
        return replace(self, **{k: v for k, v in defaults.items() if k in open_fields})
