"""What an optimizer keeps of a core C, and what becomes of it when C's frame changes.

    L = U_newᵀ U,  R = Vᵀ V_new         k x k: what the new frame has of the old one
    m ← L m R                           an average of gradients, of updates or of momentum is a matrix in the frame
    v ← (L∘L) v (R∘R) + (1 - c)∘v       an average of squares; c_ij = (Σ_a L_ia²) (Σ_b R_bj²) <= 1

The first term of v alone would lose the variance that the new frame does not have from the old one, at every refresh,
while Adam's bias correction takes v for an average over all steps: √v̂ falls and the steps of C grow, five times within
a thousand steps at the overlap of real frames (c = 1/50). The second term puts in what is known of the other
directions. A frame's columns are in the order of σ, so the new place ij has about the variance that it had before.
Where all entries of v are equal they stay so; in the same frame nothing changes.

Columns that a frame leaves zero (a gradient of rank below k) are no directions: their places take the mean of the
others, and a frame that had none at all tells nothing, so the moments begin anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gorp.core.frame import Frame
from gorp.errors import ConfigError


Rule = Literal["rotate", "keep", "reset"]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The state of one optimizer, by its keys; those that a configuration leaves out are simply not there."""

    means: tuple[str, ...] = ()
    """Averages in the coordinates of the parameter, (...) x k x k; the first is the first moment."""
    squares: tuple[str, ...] = ()
    """Averages or sums of squared gradients, k x k."""
    factors: tuple[str, str] | None = None
    """Row and column means of an average of squares, k numbers each: v = row colᵀ / mean(row)."""
    restarts: bool = True
    """Whether it takes zeros for a beginning. Without a bias correction the first steps would be tenfold."""


KEPT: dict[tuple[str, str], Kept] = {
    ("torch", "Adam"): Kept(means=("exp_avg",), squares=("exp_avg_sq", "max_exp_avg_sq")),
    ("torch", "AdamW"): Kept(means=("exp_avg",), squares=("exp_avg_sq", "max_exp_avg_sq")),
    ("torch", "SGD"): Kept(means=("momentum_buffer",)),
    ("torch", "RMSprop"): Kept(means=("momentum_buffer",), squares=("square_avg",), restarts=False),
    ("torch", "Muon"): Kept(means=("momentum_buffer",)),
    ("gorp", "MuonAdamW"): Kept(means=("momentum_buffer", "exp_avg"), squares=("exp_avg_sq",)),
    ("torch", "Adagrad"): Kept(squares=("sum",), restarts=False),
    ("transformers", "Adafactor"): Kept(means=("exp_avg",), factors=("exp_avg_sq_row", "exp_avg_sq_col")),
    ("bitsandbytes", "AdamW"): Kept(means=("state1",), squares=("state2",)),
    ("bitsandbytes", "AdEMAMix"): Kept(means=("state1",), squares=("state2",)),
    ("bitsandbytes", "Lion"): Kept(means=("state1",)),
    ("bitsandbytes", "RMSprop"): Kept(squares=("state1",), restarts=False),
}
"""By package and class name, subclasses included."""


def kept_by(optimizer: type) -> Kept | None:
    """What optimizers of this class keep of a parameter; None for a class that is not known."""
    for base in optimizer.__mro__:
        if (found := KEPT.get((base.__module__.partition(".")[0], base.__name__))) is not None:
            return found
    return None


def check_moments(optimizer: type, options: Mapping[str, Any], *, rule: Rule, rank: int) -> None:
    """Refuse an optimizer whose state of a core cannot follow the core's frame under `rule`.

    Args:
        optimizer: Its class.
        options: What it is made with.
        rule: `method.moments`.
        rank: k.

    Raises:
        ConfigError: With what would work.
    """
    name, kept = f"{optimizer.__module__.partition('.')[0]}'s {optimizer.__name__}", kept_by(optimizer)
    without = "or train without cores (method.full_modules: none)"
    if "ScheduleFree" in optimizer.__name__:
        raise ConfigError(
            f"training.optim: {name} keeps a second copy of every core, which a fold into the weight would leave "
            f"behind. Use another optimizer, such as adamw_torch, {without}."
        )
    if rule == "keep":
        return
    if kept is None:
        raise ConfigError(
            f"method.moments is `{rule}`, and gorp does not know what {name} keeps of a core. Set `moments: keep`, "
            f"use another optimizer, such as adamw_torch, {without}."
        )
    if rule == "reset" and not kept.restarts:
        raise ConfigError(
            f"method.moments is `reset`, and {name} has no bias correction that would begin anew with its moments: "
            "steps after a refresh would be far too long. Set `moments: rotate` or `keep`."
        )
    if options.get("centered"):
        raise ConfigError(
            f"method.moments is `{rule}`, and a centered {name} subtracts two averages that do not rotate alike. "
            "Take `centered` out of training.optim_args, or set `moments: keep`."
        )
    if options.get("optim_bits") == 8 and rank**2 >= options.get("min_8bit_size", 4096):
        raise ConfigError(
            f"method.moments is `{rule}`, and {name} keeps the moments of a {rank} x {rank} core in 8 bits. Set "
            "`moments: keep`, a rank below 64, or an optimizer with 32 bits."
        )


@torch.no_grad()
def rotate_moments(state: Mapping[str, Any], kept: Kept, old: Frame, new: Frame) -> None:
    """Carry an optimizer's state of a core from the old frame into the new one, in place; see the module.

    Args:
        state: Of the core.
        kept: Which of its keys are what.
        old: U, m x k, and V, n x k, as the moments were gathered in.
        new: The frame that C has from now on.
    """
    left, right = new.left.mT @ old.left, old.right.mT @ new.right
    lives = [frame.norm(dim=0) > 0 for frame in (old.left, old.right)]
    alive = lives[0][:, None] & lives[1]  # k x k: the places where the old frame has directions
    share = left.square().sum(dim=1)[:, None] * right.square().sum(dim=0)  # c

    def squares(v: Tensor) -> Tensor:
        mean = torch.where(alive, v, 0).sum() / alive.sum().clamp(min=1)
        from_old = left.square().to(v) @ v @ right.square().to(v)
        return from_old + (1 - share).clamp(min=0).to(v) * torch.where(alive, v, mean)

    for key in _there(state, kept.means):
        state[key].copy_(left.to(state[key]) @ state[key] @ right.to(state[key]))
    for key in _there(state, kept.squares):
        state[key].copy_(squares(state[key]))
    if kept.factors is not None and len(_there(state, kept.factors)) == 2:
        row, column = (state[key] for key in kept.factors)
        v = squares(row[:, None] * column / row.mean().clamp(min=torch.finfo(row.dtype).tiny))
        row.copy_(v.mean(dim=1))
        column.copy_(v.mean(dim=0))
    # Without a direction L, R and the mean are zero, so the moments are too; their count begins anew with them. On the
    # count's own device, where it is that of the frame: to ask whether there is a direction would wait for the GPU.
    if torch.is_tensor(step := state.get("step")) and step.device == alive.device:
        step.mul_(alive.any())
    elif not alive.any():
        reset_moments(state, kept)


@torch.no_grad()
def reset_moments(state: Mapping[str, Any], kept: Kept) -> None:
    """Set an optimizer's state of a core to what it is before the first step, the count of steps included."""
    for key in _there(state, (*kept.means, *kept.squares, *(kept.factors or ()))):
        state[key].zero_()
    if torch.is_tensor(step := state.get("step")):
        step.zero_()
    elif step is not None:
        state["step"] = 0  # pyright: ignore[reportIndexIssue]


def first_moment(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor | None:
    """The average of the gradients of `parameter`, in its shape; None where the optimizer keeps none."""
    state, kept = optimizer.state.get(parameter, {}), kept_by(type(optimizer))
    found = _there(state, ("exp_avg", "momentum_buffer") if kept is None else kept.means[:1])
    if not found or not state[found[0]].is_floating_point():
        return None
    return state[found[0]].reshape(-1, *parameter.shape)[0]  # AdEMAMix keeps two averages, the faster one first


def _there(state: Mapping[str, Any], keys: tuple[str, ...]) -> list[str]:
    return [key for key in keys if torch.is_tensor(state.get(key))]
