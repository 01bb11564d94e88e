"""Optimizer state is converted to a new frame, and steps are as long late in a task as early."""

import copy

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor

from gorp.core.frame import Frame
from gorp.core.moments import STATE_KEYS, check_moments, first_moment, reset_moments, rotate_moments, state_keys_of
from gorp.core.reference import adam_direction, carried_moments
from gorp.errors import ConfigError
from tests.matrices import projector


ADAM = STATE_KEYS["torch", "AdamW"]
K = 4


def rotate(state, kept, old, new):
    """Rotate the state of one core."""
    rotate_moments([state], kept, *(Frame(left=f.left[None], right=f.right[None]) for f in (old, new)))


def frame(m=9, n=12, *, rank=K, seed=0):
    """Return a random frame of K columns, of which the first `rank` are not zero."""
    generator = torch.Generator().manual_seed(seed)
    qs = [torch.linalg.qr(torch.randn(size, K, generator=generator, dtype=torch.float64)).Q for size in (m, n)]
    return Frame(**dict(zip(("left", "right"), (q * (torch.arange(K) < rank) for q in qs), strict=True)))


def state(seed=5):
    generator = torch.Generator().manual_seed(seed)
    mean, square = torch.randn(2, K, K, generator=generator, dtype=torch.float64)
    return {"step": torch.tensor(40.0), "exp_avg": mean, "exp_avg_sq": square.square()}


def _other_state(kept, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {key: (2, K, K) for key in kept.means} | {key: (K, K) for key in kept.squares}
    shapes |= dict.fromkeys(kept.factors or (), (K,))
    return {key: torch.rand(shape, generator=generator, dtype=torch.float64) for key, shape in shapes.items()}


def carried(old, new, before=None):
    after = {key: value.clone() for key, value in (before or state()).items()}
    rotate(after, ADAM, old, new)
    return after


def normalized_rms(frames: str, *, seed: int, n: int = 16, k: int = 4, steps: int = 5000) -> dict[int, float]:
    """Return the rms of Adam's N around three steps, for a core whose gradient is stationary noise, T = 10.

    The noise is stronger on some outputs than on others, and each frame is that of the current gradient, so consecutive
    frames overlap as real ones do: in about a quarter of their directions.
    """
    generator = torch.Generator().manual_seed(seed)
    strength = torch.linspace(2, 0.1, n, dtype=torch.float64)[:, None]
    m, v = torch.zeros(2, k, k, dtype=torch.float64)
    current, squares = None, {50: [], 500: [], steps: []}
    for step in range(1, steps + 1):
        gradient = strength * torch.randn(n, n, generator=generator, dtype=torch.float64)
        if (step - 1) % 10 == 0 and (current is None or frames == "new"):
            left, _, right = torch.linalg.svd(gradient)
            new = Frame(left=left[:, :k], right=right[:k].mT)
            if current is not None:
                rotate({"exp_avg": m, "exp_avg_sq": v}, ADAM, current, new)
            current = new
        reduced = current.left.mT @ gradient @ current.right
        normalized = adam_direction(reduced, m, v, step=step, betas=(0.9, 0.999), eps=1e-8)
        for around, values in squares.items():
            if abs(step - around) <= 30:
                values.append(normalized.square().mean())
    return {around: torch.stack(values).mean().sqrt().item() for around, values in squares.items()}


@pytest.mark.parametrize("frames", ["new", "the same"])
def test_steps_are_as_long_after_thousands_of_steps_as_after_fifty(frames):
    runs = [normalized_rms(frames, seed=seed) for seed in range(3)]
    early, middle, late = (sum(run[around] for run in runs) for around in runs[0])
    print(f"\n{frames}: {early / 3:.3f}, {middle / 3:.3f}, {late / 3:.3f}")
    assert middle == pytest.approx(early, rel=0.1)
    assert late == pytest.approx(early, rel=0.1)
    assert 0.1 < late / 3 < 0.5


class TestRotating:
    def test_the_first_moment_stays_the_same_matrix_within_the_new_frame(self):
        old, new, before = frame(), frame(seed=1), state()
        after = carried(old, new)
        expected = projector(new.left) @ old.left @ before["exp_avg"] @ old.right.mT @ projector(new.right)
        torch.testing.assert_close(new.left @ after["exp_avg"] @ new.right.mT, expected, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("rank", [K, 2])
    def test_if_the_frame_is_the_same_nothing_changes(self, rank):
        old, before = frame(rank=rank), state()
        nonzero = torch.arange(K) < rank
        before = {key: x * nonzero * nonzero[:, None] if x.ndim else x for key, x in before.items()}
        after = carried(old, old, before)
        torch.testing.assert_close(after["exp_avg"], before["exp_avg"], rtol=1e-12, atol=1e-12)
        known = nonzero & nonzero[:, None]
        torch.testing.assert_close(after["exp_avg_sq"][known], before["exp_avg_sq"][known], rtol=1e-12, atol=1e-12)

    def test_equal_variances_stay_equal_and_all_stay_within_the_range_of_the_old_ones(self):
        old, new, before = frame(), frame(seed=1), state()
        after = carried(old, new)["exp_avg_sq"]
        low, high = before["exp_avg_sq"].aminmax()
        assert (after >= low * (1 - 1e-12)).all() and (after <= high * (1 + 1e-12)).all()
        equal = carried(old, new, before | {"exp_avg_sq": torch.full((K, K), 0.3, dtype=torch.float64)})
        torch.testing.assert_close(equal["exp_avg_sq"], torch.full((K, K), 0.3, dtype=torch.float64))

    def test_a_rotation_by_45_degrees_computed_by_hand(self):
        """k = 1 in a plane; u_new is at 45° to u, v_new = v. v = 1/2 · 8 + (1 - 1/2) · 8; m = √½ · 2."""
        old = Frame(left=torch.tensor([[1.0], [0.0]]), right=torch.tensor([[1.0]]))
        new = Frame(left=torch.tensor([[0.5**0.5], [0.5**0.5]]), right=torch.tensor([[1.0]]))
        kept = {"exp_avg": torch.tensor([[2.0]]), "exp_avg_sq": torch.tensor([[8.0]])}
        rotate(kept, ADAM, old, new)
        assert kept["exp_avg"].item() == pytest.approx(2**0.5) and kept["exp_avg_sq"].item() == pytest.approx(8.0)

    def test_entries_of_zero_columns_take_the_mean_of_the_others(self):
        eye, nonzero = torch.eye(20, dtype=torch.float64), torch.arange(K) < 2
        old = Frame(left=eye[:, 10:14] * nonzero, right=eye[:, 10:14] * nonzero)
        new = Frame(left=eye[:, :K], right=eye[:, :K])
        before = {"exp_avg_sq": torch.zeros(K, K).double()}
        before["exp_avg_sq"][:2, :2] = torch.tensor([[4.0, 2.0], [1.0, 1.0]])
        after = carried(old, new, before)["exp_avg_sq"]  # the new frame is orthogonal to the old one
        expected = torch.full((K, K), 2.0).double()
        expected[:2, :2] = before["exp_avg_sq"][:2, :2]
        torch.testing.assert_close(after, expected)

    def test_if_the_old_frame_is_zero_the_moments_restart_from_zero(self):
        after = carried(frame(rank=0), frame())
        assert all(not value.any() for value in after.values())

    @pytest.mark.parametrize("rank", [K, 2, 1])
    def test_agrees_with_the_reference(self, rank):
        old, new, before = frame(rank=rank), frame(seed=3), state()
        after = carried(old, new)
        m, v = carried_moments(before["exp_avg"], before["exp_avg_sq"], old, new)
        torch.testing.assert_close(after["exp_avg"], m, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(after["exp_avg_sq"], v, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(
        "kept", [ADAM, STATE_KEYS["transformers", "Adafactor"], STATE_KEYS["bitsandbytes", "AdEMAMix"]]
    )
    def test_many_cores_are_rotated_as_each_alone(self, kept):
        """One of them has no state yet, and one an old frame without columns."""
        olds, news = [frame(seed=1), frame(rank=0), frame(rank=2, seed=2)], [frame(seed=i) for i in (3, 4, 5)]
        states = [state(1), {}, state(2)] if kept is ADAM else [_other_state(kept, seed) for seed in range(3)]
        together, alone = copy.deepcopy(states), copy.deepcopy(states)
        stack = [
            Frame(left=torch.stack([f.left for f in fs]), right=torch.stack([f.right for f in fs]))
            for fs in (olds, news)
        ]
        rotate_moments(together, kept, *stack)
        for each, old, new in zip(alone, olds, news, strict=True):
            rotate(each, kept, old, new)
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)

    def test_the_maximum_of_amsgrad_stays_at_least_the_average(self):
        before = state()
        before["max_exp_avg_sq"] = before["exp_avg_sq"] + state(seed=6)["exp_avg_sq"]
        after = carried(frame(), frame(seed=1), before)
        assert (after["max_exp_avg_sq"] >= after["exp_avg_sq"]).all()


def stepped(make, *, steps=4):
    """Return an optimizer of one K x K parameter after some steps, and the parameter."""
    torch.manual_seed(0)
    core = nn.Parameter(torch.zeros(K, K, dtype=torch.float64))
    optimizer = make([core])
    for _ in range(steps):
        core.grad = torch.randn(K, K, dtype=torch.float64)
        optimizer.step()
    return optimizer, core


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0),
    "AMSGrad": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0, amsgrad=True),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Adafactor": lambda p: Adafactor(p, lr=0.1, scale_parameter=False, relative_step=False),
    "Adafactor with a first moment": lambda p: Adafactor(
        p, lr=0.1, scale_parameter=False, relative_step=False, beta1=0.9
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
class TestOptimizers:
    def test_every_matrix_or_factor_of_the_state_is_listed(self, name):
        optimizer, core = stepped(OPTIMIZERS[name])
        kept = state_keys_of(type(optimizer))
        known = {*kept.means, *kept.squares, *(kept.factors or ())}
        large = {key for key, x in optimizer.state[core].items() if torch.is_tensor(x) and x.numel() > 1}
        assert large <= known and large

    def test_permuting_the_frame_and_flipping_signs_leaves_the_next_step_the_same_matrix(self, name):
        old = frame()
        order = torch.tensor([2, 0, 3, 1])
        signs = torch.tensor([1.0, -1.0, 1.0, 1.0]).double()
        new = Frame(left=old.left[:, order] * signs, right=old.right[:, order] * signs.flip(0))
        gradient = torch.randn(9, 12, dtype=torch.float64)
        updates = []
        for at in (old, new):
            optimizer, core = stepped(OPTIMIZERS[name])
            if at is new:
                rotate(optimizer.state[core], state_keys_of(type(optimizer)), old, new)
            core.data.zero_()
            core.grad = at.left.mT @ gradient @ at.right
            optimizer.step()
            updates.append(at.left @ core.detach() @ at.right.mT)
        torch.testing.assert_close(*updates, rtol=1e-9, atol=1e-12)

    def test_an_empty_state_can_be_rotated_and_reset(self, name):
        optimizer, core = stepped(OPTIMIZERS[name], steps=0)
        state = optimizer.state.get(core, {})
        rotate(state, state_keys_of(type(optimizer)), frame(rank=0), frame())
        reset_moments(state, state_keys_of(type(optimizer)))
        core.grad = torch.ones(K, K, dtype=torch.float64)
        optimizer.step()
        assert core.isfinite().all() and core.any()

    def test_reset_gives_the_state_of_a_new_optimizer_or_is_refused(self, name):
        optimizer, core = stepped(OPTIMIZERS[name])
        kept = state_keys_of(type(optimizer))
        if not kept.restarts:
            with pytest.raises(ConfigError, match=r"`moments: rotate` or `keep`"):
                check_moments(type(optimizer), {}, rule="reset", rank=K)
            return
        check_moments(type(optimizer), {}, rule="reset", rank=K)
        reset_moments(optimizer.state[core], kept)
        core.data.zero_()
        again, first = stepped(OPTIMIZERS[name], steps=0)
        first.grad = core.grad = torch.randn(K, K, dtype=torch.float64)
        optimizer.step()
        again.step()
        torch.testing.assert_close(core.detach(), first.detach(), rtol=1e-12, atol=1e-12)

    def test_its_first_moment_is_found(self, name):
        optimizer, core = stepped(OPTIMIZERS[name])
        found = first_moment(optimizer, core)
        assert (found is None) == (name in ("Adagrad", "Adafactor"))
        assert found is None or found.shape == core.shape


def named(name: str, module: str) -> type:
    return type(name, (torch.optim.Optimizer,), {"__module__": module})


class Subclass(torch.optim.AdamW):
    """An optimizer class of a user."""


class TestCheckMoments:
    @pytest.mark.parametrize(
        ("optimizer", "options", "rule", "says"),
        [
            (named("AdamWScheduleFree", "schedulefree.adamw"), {}, "keep", "second copy of every core"),
            (named("Strange", "elsewhere"), {}, "rotate", "does not know which state elsewhere's Strange keeps"),
            (named("AdamW", "elsewhere"), {}, "reset", "does not know which state elsewhere's AdamW keeps"),
            (torch.optim.RMSprop, {}, "reset", "no bias correction"),
            (torch.optim.RMSprop, {"centered": True}, "rotate", "optim_args"),
            (named("AdamW", "bitsandbytes.optim.adamw"), {"optim_bits": 8}, "rotate", "64 x 64 core in 8 bits"),
        ],
    )
    def test_raises_for_optimizers_whose_state_cannot_be_converted(self, optimizer, options, rule, says):
        with pytest.raises(ConfigError, match=says):
            check_moments(optimizer, options, rule=rule, rank=64)

    @pytest.mark.parametrize(
        ("optimizer", "options", "rule"),
        [
            (named("Strange", "elsewhere"), {}, "keep"),
            (Subclass, {}, "rotate"),
            (named("AdamW", "bitsandbytes.optim.adamw"), {"optim_bits": 8}, "rotate"),
            (named("AdamW", "bitsandbytes.optim.adamw"), {"optim_bits": 32}, "reset"),
        ],
    )
    def test_accepts_optimizers_whose_state_can_be_converted(self, optimizer, options, rule):
        check_moments(optimizer, options, rule=rule, rank=63)
