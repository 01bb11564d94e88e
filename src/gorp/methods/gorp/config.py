"""The options of GORP, and the default of each option in each mode."""

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
"""Default of each option that is None, by mode. `docs/equations.md` gives the reason for each."""


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
    """`strict`: no change acts on S, whatever the optimizer does. `paper`: the equations as published."""
    full_modules: tuple[str, ...] | str = "auto"
    """Layers that get a core: "auto" (the preset of the model's family), "all-linear", "none", or patterns. (Paper:
    T5's cross-attention, LLaMA's MLP gate.)"""
    rank: Annotated[int, Range(1, WIDEST)] = 8
    """k: the core C is k x k. (Paper: 8.)"""
    refresh_every: Annotated[int, COUNT, BETWEEN_TASKS] = 10
    """T: number of optimizer steps between two refreshes of a frame. (Paper: 10.)"""
    core_learning_rate: Annotated[float, NOT_NEGATIVE, BETWEEN_TASKS] | None = None
    """Learning rate of the cores; None: that of the LoRA pairs. (Paper, T5: 1e-5 for cores, 1e-3 for LoRA.)"""
    scale: Annotated[float, POSITIVE, BETWEEN_TASKS] = 1.0
    """α in W ← W - η α U N Vᵀ. (Paper: not stated.)"""
    energy: Annotated[float, BELOW_ONE, BETWEEN_TASKS] | None = None
    """ε, if S grows from gradients (`memory_source` moment or sketch): fraction of a task's squared norm that S holds
    afterwards, in [0, 1). (Paper: not stated.)"""
    budget: Annotated[float, Range(0, 1, open_low=True), BETWEEN_TASKS] | None = None
    """Largest capacity s / n of a weight's S, in (0, 1]."""
    memory_source: Literal["moment", "sketch", "inputs"] | None = None
    """What S grows from at the end of a task: Adam's first moment (paper), a sketch of the task's gradients, updated at
    each refresh, or the task's inputs, computed in extra forward passes."""
    memory_rows: Annotated[int, Range(1, WIDEST), BETWEEN_TASKS] = 256
    """With `memory_source: inputs`: number of rows of the task, drawn at random, whose inputs S grows from."""
    threshold: Annotated[float, POSITIVE, BETWEEN_TASKS] = 0.6
    """τ, with `memory_source: inputs`: a direction is protected if the task's inputs have more energy along it than
    τ · (energy along an average direction) · (s / n), with s the size of S at that moment."""
    sketch_size: Annotated[int, Range(1, WIDEST)] = 128
    """Number of rows that the sketch of a weight has."""
    projection: Literal["gradient", "both"] | None = None
    """What is projected in the LoRA branch: A's gradient (paper mode only), or A's gradient and A after the step."""
    adapter: Literal["fresh", "shared"] | None = None
    """A new LoRA pair for each task, merged at its end, or one pair for all tasks. (Paper: not stated.)"""
    adapter_rows: Literal["aligned", "trained"] | None = None
    """The rows of A from the second task on. `aligned`: the leading directions of the task's inputs outside S; A is
    fixed, and B is trained at twice the learning rate. `trained`: random rows outside S, trained together with B and
    projected in each step. (Paper: trained.)"""
    adapter_side: Literal["input", "rank"] = "input"
    """Paper mode: the coordinates of S for A: n input dimensions or r rows. (Paper: not stated; with r, S is soon the
    whole space.)"""
    moments: Literal["rotate", "keep", "reset"] | None = None
    """What happens to the optimizer's moments of a core when its frame changes: they are rotated into the new frame,
    kept as they are, or reset; see `gorp.core.moments`. (Paper: not stated; GaLore keeps them.)"""
    staggered: bool | None = None
    """Whether layers refresh their frames at different steps. (Paper: all at the same step.)"""
    oversampling: Annotated[int, Range(0, 1000)] = 8
    """Number of columns of the sketched frame beyond k."""
    power_steps: Annotated[int, Range(0, 100)] | None = None
    """Power iterations of the sketched frame, besides the half iteration that it always does. (Paper: an exact SVD.)"""
    recompress: Annotated[float, BELOW_ONE] = 1e-6
    """Relative error allowed when the rank of a finished task's factors is reduced; their row space never grows."""

    def __post_init__(self) -> None:
        """Check the fields, also in combination.

        Raises:
            ConfigError: If a value is not allowed, or two options do not work together.
        """
        super().__post_init__()
        if self.mode == "strict" and self.projection == "gradient":
            raise ConfigError(
                "method.projection: gradient is for paper mode: Adam divides the gradient entry by entry, so its step "
                "has a component in S again. Use `projection: both`, or `mode: paper`."
            )
        if self.mode == "strict" and self.adapter == "shared":
            raise ConfigError(
                "method.adapter: shared is for paper mode: with one pair for all tasks, a change of B changes the "
                "outputs for old inputs, whatever A is. Use `adapter: fresh`, or `mode: paper`."
            )
        if self.mode == "paper" and self.adapter_rows == "aligned":
            raise ConfigError(
                "method.adapter_rows: aligned is for strict mode: paper mode trains one pair A, B through all tasks. "
                "Use `adapter_rows: trained`, or `mode: strict`."
            )
        if self.memory_source == "moment" and self.adapter_rows == "aligned":
            raise ConfigError(
                "method.memory_source: moment makes S grow from the optimizer's first moment of A, but with "
                "adapter_rows: aligned A is not trained. Use `adapter_rows: trained`, or `memory_source: inputs`."
            )
        if self.mode == "strict" and self.adapter_side == "rank":
            raise ConfigError(
                "method.adapter_side: rank is for paper mode: it protects rows of A, not inputs, and the rows of one "
                "task's A have no meaning for the next task's new pair. Use `adapter_side: input`, or `mode: paper`."
            )

    def resolved(self) -> "GorpConfig":
        """Return a copy in which each None that the mode decides has its default from `MODE_DEFAULTS`."""
        open_fields = {f.name for f in fields(self) if getattr(self, f.name) is None}
        defaults = dict(MODE_DEFAULTS[self.mode])
        if self.memory_source == "moment":  # the first moment of A, so A must be trained
            defaults["adapter_rows"] = "trained"
        return replace(self, **{k: v for k, v in defaults.items() if k in open_fields})
