"""Optimizer state of a core C: which entries there are, and how they are converted when the frame of C changes.

    L = U_newᵀ U,  R = Vᵀ V_new         k x k: overlap of the new frame with the old one
    m ← L m R                           averages of gradients, updates or momentum: a matrix in frame coordinates
    v ← (L∘L) v (R∘R) + (1 - c)∘v       averages of squares; c_ij = (Σ_a L_ia²) (Σ_b R_bj²) <= 1

The first term of v alone would lose, at every refresh, the variance along new directions that the old frame did not
span. Adam's bias correction assumes that v is an average over all steps, so √v̂ would fall and the steps of C would
grow: fivefold within a thousand steps at the overlap of real frames (c = 1/50). The second term fills this part with
the old variance at the same position ij. Columns of a frame are ordered by σ, so this is a good estimate. If all
entries of v are equal, they stay equal; if the frame does not change, nothing changes.

If the gradient has a rank below k, the remaining columns of the frame are zero. Their entries of v take the mean of the
others. If the old frame has no columns at all, the moments start from zero again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, _foreach_copy_, _foreach_mul_  # pyright: ignore[reportPrivateImportUsage]

from gorp.core.frame import Frame
from gorp.errors import ConfigError


Rule = Literal["rotate", "keep", "reset"]


@dataclass(frozen=True, kw_only=True)
class StateKeys:
    """State keys of one optimizer class, by kind. Which of them are present depends on the optimizer's options."""

    means: tuple[str, ...] = ()
    """Averages in the coordinates of the parameter, (...) x k x k; the first key is the first moment."""
    squares: tuple[str, ...] = ()
    """Averages or sums of squared gradients, k x k."""
    factors: tuple[str, str] | None = None
    """Row and column means of an average of squares, k numbers each: v = row colᵀ / mean(row)."""
    restarts: bool = True
    """Whether zero initial moments are bias-corrected. Otherwise the first steps would be ten times as long."""


STATE_KEYS: dict[tuple[str, str], StateKeys] = {
    ("torch", "Adam"): StateKeys(means=("exp_avg",), squares=("exp_avg_sq", "max_exp_avg_sq")),
    ("torch", "AdamW"): StateKeys(means=("exp_avg",), squares=("exp_avg_sq", "max_exp_avg_sq")),
    ("torch", "SGD"): StateKeys(means=("momentum_buffer",)),
    ("torch", "RMSprop"): StateKeys(means=("momentum_buffer",), squares=("square_avg",), restarts=False),
    ("torch", "Muon"): StateKeys(means=("momentum_buffer",)),
    ("gorp", "MuonAdamW"): StateKeys(means=("momentum_buffer", "exp_avg"), squares=("exp_avg_sq",)),
    ("torch", "Adagrad"): StateKeys(squares=("sum",), restarts=False),
    ("transformers", "Adafactor"): StateKeys(means=("exp_avg",), factors=("exp_avg_sq_row", "exp_avg_sq_col")),
    ("bitsandbytes", "AdamW"): StateKeys(means=("state1",), squares=("state2",)),
    ("bitsandbytes", "AdEMAMix"): StateKeys(means=("state1",), squares=("state2",)),
    ("bitsandbytes", "Lion"): StateKeys(means=("state1",)),
    ("bitsandbytes", "RMSprop"): StateKeys(squares=("state1",), restarts=False),
}
"""State keys by (package, class name); an entry also applies to subclasses."""


def state_keys_of(optimizer: type) -> StateKeys | None:
    """Return the state keys of an optimizer class or of its nearest known base class; None if there is none."""
    for base in optimizer.__mro__:
        if (found := STATE_KEYS.get((base.__module__.partition(".")[0], base.__name__))) is not None:
            return found
    return None


def check_moments(optimizer: type, options: Mapping[str, Any], *, rule: Rule, rank: int) -> None:
    """Raise if an optimizer's state of a core cannot be converted to a new frame under `rule`.

    Args:
        optimizer: The optimizer's class.
        options: The arguments with which it will be constructed.
        rule: `method.moments`.
        rank: k.

    Raises:
        ConfigError: The state cannot be converted; the message says which settings work.
    """
    name, kept = f"{optimizer.__module__.partition('.')[0]}'s {optimizer.__name__}", state_keys_of(optimizer)
    without = "or train without cores (method.full_modules: none)"
    if "ScheduleFree" in optimizer.__name__:
        raise ConfigError(
            f"training.optim: {name} keeps a second copy of every core, and folding the core into the weight would not "
            f"include that copy. Use another optimizer, such as adamw_torch, {without}."
        )
    if rule == "keep":
        return
    if kept is None:
        raise ConfigError(
            f"method.moments is `{rule}`, but gorp does not know which state {name} keeps for a core. Set "
            f"`moments: keep`, use another optimizer, such as adamw_torch, {without}."
        )
    if rule == "reset" and not kept.restarts:
        raise ConfigError(
            f"method.moments is `reset`, but {name} has no bias correction that restarts with its moments: the steps "
            "after each refresh would be far too long. Set `moments: rotate` or `keep`."
        )
    if options.get("centered"):
        raise ConfigError(
            f"method.moments is `{rule}`, but a centered {name} subtracts two averages that rotate differently. "
            "Remove `centered` from training.optim_args, or set `moments: keep`."
        )
    if options.get("optim_bits") == 8 and rank**2 >= options.get("min_8bit_size", 4096):
        raise ConfigError(
            f"method.moments is `{rule}`, but {name} stores the moments of a {rank} x {rank} core in 8 bits, which "
            "cannot be rotated. Set `moments: keep`, use a rank below 64, or use an optimizer with 32 bits."
        )


@torch.no_grad()
def rotate_moments(states: Sequence[Mapping[str, Any]], kept: StateKeys, old: Frame, new: Frame) -> None:
    """Convert an optimizer's states of L cores from old frames to new ones, in place; see the module docstring.

    Args:
        states: The optimizer's state of each core.
        kept: The state keys of the optimizer.
        old: The frames in whose coordinates the moments are now: U, L x m x k, and V, L x n x k.
        new: The new frames of the cores.
    """
    left = new.left.mT @ old.left  # L: (k, m) @ (m, k), for each core
    right = old.right.mT @ new.right  # R: (k, n) @ (n, k)
    nonzero = [side.norm(dim=1) > 0 for side in (old.left, old.right)]
    known = nonzero[0][:, :, None] & nonzero[1][:, None]  # k x k: entries of v for which the old frame has both columns
    share = left.square().sum(dim=2)[:, :, None] * right.square().sum(dim=1)[:, None]  # c

    def rotated_squares(v: Tensor, which: Callable[[Tensor], Tensor]) -> Tensor:
        there, c = which(known), which(share).to(v)
        mean = torch.where(there, v, 0).sum(dim=(1, 2)) / there.sum(dim=(1, 2)).clamp(min=1)
        from_old = which(left).square().to(v) @ v @ which(right).square().to(v)  # (L∘L) v (R∘R)
        return from_old + (1 - c).clamp(min=0) * torch.where(there, v, mean[:, None, None])

    for key in kept.means:
        for have, which, m in _stacked(states, (key,)):
            turn = [which(side).to(m[0]) for side in (left, right)]
            turn = [side[:, None] if m[0].dim() == 4 else side for side in turn]  # AdEMAMix has two averages
            _write(have, key, turn[0] @ m[0] @ turn[1])  # m ← L m R
    for key in kept.squares:
        for have, which, v in _stacked(states, (key,)):
            _write(have, key, rotated_squares(v[0], which))
    if kept.factors is not None:
        for have, which, (row, column) in _stacked(states, kept.factors):
            # Adafactor: form v from its factors, rotate it, and factor it again.
            tiny = torch.finfo(row.dtype).tiny
            whole = row[:, :, None] * column[:, None] / row.mean(dim=1).clamp(min=tiny)[:, None, None]
            v = rotated_squares(whole, which)
            _write(have, kept.factors[0], v.mean(dim=2))
            _write(have, kept.factors[1], v.mean(dim=1))
    # If an old frame has no columns, L, R and the mean are zero, and so are the moments now; the step count restarts
    # with them. It is multiplied on its own device if possible: reading `known` on the CPU would wait for the GPU.
    there = known.flatten(1).any(dim=1)
    steps: list[Any] = [state.get("step") for state in states]
    if all(torch.is_tensor(step) and step.device == known.device for step in steps):
        _foreach_mul_(steps, list(there.to(steps[0].dtype)))
    else:
        for state, found in zip(states, there.tolist(), strict=True):
            if not found:
                reset_moments(state, kept)


@torch.no_grad()
def reset_moments(state: Mapping[str, Any], kept: StateKeys) -> None:
    """Set an optimizer's state of a core to its initial value: all moments and the step count to zero."""
    for key in _present(state, (*kept.means, *kept.squares, *(kept.factors or ()))):
        state[key].zero_()
    if torch.is_tensor(step := state.get("step")):
        step.zero_()
    elif step is not None:
        state["step"] = 0  # pyright: ignore[reportIndexIssue]


def first_moment(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor | None:
    """Return the optimizer's average of the gradients of `parameter`, in its shape; None if it keeps none."""
    state, kept = optimizer.state.get(parameter, {}), state_keys_of(type(optimizer))
    keys = _present(state, ("exp_avg", "momentum_buffer") if kept is None else kept.means[:1])
    if not keys or not state[keys[0]].is_floating_point():  # an integer state is quantized (8-bit optimizers)
        return None
    return state[keys[0]].reshape(-1, *parameter.shape)[0]  # AdEMAMix keeps two averages, the faster one first


def _stacked(
    states: Sequence[Mapping[str, Any]], keys: tuple[str, ...]
) -> Iterator[tuple[list[Mapping[str, Any]], Callable[[Tensor], Tensor], list[Tensor]]]:
    """Yield the states that have all of `keys`, a function that selects their part of a stack, and their tensors."""
    have = [index for index, state in enumerate(states) if len(_present(state, keys)) == len(keys)]
    if not have:
        return

    def which(stack: Tensor) -> Tensor:
        return stack if len(have) == len(states) else torch.stack([stack[index] for index in have])

    yield [states[i] for i in have], which, [torch.stack([states[i][key] for i in have]) for key in keys]


def _write(states: Sequence[Mapping[str, Any]], key: str, values: Tensor) -> None:
    _foreach_copy_([state[key] for state in states], list(values))


def _present(state: Mapping[str, Any], keys: tuple[str, ...]) -> list[str]:
    """Return those of `keys` that are tensors in `state`."""
    return [key for key in keys if torch.is_tensor(state.get(key))]
