"""The sketched frame equals the exact frame if the sketch is wide enough, is orthogonal to S, and never forms G."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gorp.core.frame import exact_frame, is_due, offsets
from gorp.core.linalg import orthonormalize
from gorp.core.sketched import STACKED, FrameInputs, gradient_rows, sketched_frames, stacks
from tests.matrices import basis, decaying, orthonormality_error, projector


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_pairs(m, n, *, batches=2, tokens=20, dtype=torch.float64):
    return [(torch.randn(tokens, n, dtype=dtype), torch.randn(tokens, m, dtype=dtype)) for _ in range(batches)]


def gradient_of(pairs):
    return sum(d.mT @ x for x, d in pairs)


def frame_inputs(pairs, away_from):
    (rows,) = gradient_rows([pairs], count=16, generators=[generator()])
    return FrameInputs(pairs=pairs, basis=away_from, rows=rows)


def sketch(pairs, away_from, **options):
    settings = {"rank": 4, "oversampling": 8, "power_steps": 0} | options
    (frame,) = sketched_frames([frame_inputs(pairs, away_from)], **settings)
    return frame


@pytest.mark.parametrize(("m", "n", "s"), [(9, 12, 0), (9, 12, 3), (12, 9, 3), (12, 9, 8), (3, 20, 5), (20, 3, 1)])
def test_equals_the_exact_frame_if_the_sketch_is_as_wide_as_the_matrix(m, n, s):
    pairs, away_from = random_pairs(m, n), basis(n, s)
    fast, exact = sketch(pairs, away_from), exact_frame(gradient_of(pairs), away_from, rank=4)
    torch.testing.assert_close(projector(fast.left), projector(exact.left), rtol=0, atol=1e-10)
    torch.testing.assert_close(projector(fast.right), projector(exact.right), rtol=0, atol=1e-10)
    # U Vᵀ does not depend on the signs that an SVD chooses for each pair of singular vectors.
    torch.testing.assert_close(fast.left @ fast.right.mT, exact.left @ exact.right.mT, rtol=0, atol=1e-10)


def test_frames_do_not_depend_on_the_other_layers_of_the_call():
    shapes, away_from = ((9, 12), (9, 12), (12, 9), (9, 12)), {12: basis(12, 3), 9: basis(9, 2)}
    pairs = [random_pairs(m, n) for m, n in shapes]
    pairs[1] = [(x, d * torch.inf) for x, d in pairs[1]]
    layers = [frame_inputs(p, away_from[n]) for p, (_, n) in zip(pairs, shapes, strict=True)]
    together = sketched_frames(layers, rank=4, oversampling=2, power_steps=0)
    for frame, p, (_, n) in zip(together, pairs, shapes, strict=True):
        alone = sketch(p, away_from[n], oversampling=2)
        assert (frame is None) == (alone is None) == (not gradient_of(p).isfinite().all())
        if frame is not None:
            torch.testing.assert_close(vars(frame), vars(alone), rtol=0, atol=1e-12)
            reduced = frame.left.mT @ gradient_of(p) @ frame.right
            torch.testing.assert_close(reduced, frame.sigma.diag(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("limit", [1, 2**24])
def test_layers_of_one_shape_with_different_bases_have_the_frames_that_they_have_alone(limit, monkeypatch):
    """With a limit of one byte every layer is computed alone."""
    monkeypatch.setitem(STACKED, "cpu", limit)
    widths = [0, 1, 5, 12, 3, 12]  # of S; 12 is the whole space
    layers = [frame_inputs(random_pairs(9, 12, batches=1 + (s == 5)), basis(12, s)) for s in widths]
    assert len(stacks([x.pairs for x in layers], [x.basis for x in layers])) == (6 if limit == 1 else 4)
    options = {"rank": 4, "oversampling": 2, "power_steps": 1}
    for layer, frame in zip(layers, sketched_frames(layers, **options), strict=True):
        (alone,) = sketched_frames([layer], **options)
        torch.testing.assert_close(vars(frame), vars(alone), rtol=0, atol=1e-12)
        assert frame.left.shape == (9, 4) and frame.right.any() == (layer.basis.shape[1] < 12)


def test_rows_of_gradients_do_not_depend_on_the_other_layers_of_the_call():
    pairs = [random_pairs(m, 12, dtype=torch.float32) for m in (9, 9, 5)]
    together = gradient_rows(pairs, count=3, generators=[generator(i) for i in range(3)])
    for index, rows in enumerate(together):
        (alone,) = gradient_rows([pairs[index]], count=3, generators=[generator(index)])
        torch.testing.assert_close(rows, alone)


def energy(pairs, away_from, frame):
    """Return the energy of the projected gradient that the frame holds, relative to the exact frame."""
    gradient = gradient_of(pairs).double()
    exact = exact_frame(gradient, away_from.double(), rank=frame.left.shape[1])
    energies = [(f.left.double().mT @ gradient @ f.right.double()).square().sum() for f in (frame, exact)]
    return (energies[0] / energies[1]).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_holds_the_energy_of_a_slowly_decaying_gradient_despite_a_large_protected_part(dtype):
    """A frame from a random start, or from rows that are not projected, holds only 0.2 of it."""
    away_from = basis(80, 20)
    gradient = decaying(100, 80, rate=0.9) + 20 * torch.randn(100, 20).double() @ away_from.mT
    pairs = [(gradient.to(dtype), torch.eye(100, dtype=dtype))]
    assert energy(pairs, away_from, sketch(pairs, away_from.to(dtype))) > 0.95


def test_float32_finds_directions_with_small_singular_values():
    gradient = decaying(64, 64, rate=0.25)  # σ₈ = 6e-5 σ₁
    pairs = [(gradient.float(), torch.eye(64))]
    frame, exact = sketch(pairs, basis(64, 0).float(), rank=8), exact_frame(gradient, basis(64, 0), rank=8)
    overlap = (frame.left.double() * exact.left).sum(dim=0).abs()
    assert (overlap > 0.99).all()


def test_a_narrow_sketch_is_close_to_exact_on_a_decaying_spectrum():
    gradient = decaying(60, 50, rate=0.6)
    pairs, away_from = [(gradient, torch.eye(60).double())], basis(50, 10)
    fast, exact = sketch(pairs, away_from, power_steps=2), exact_frame(gradient, away_from, rank=4)
    torch.testing.assert_close(projector(fast.right), projector(exact.right), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("s", [1, 20, 39])
def test_v_is_orthonormal_and_orthogonal_to_the_protected_subspace(s, dtype):
    away_from = basis(40, s, dtype=dtype)
    frame = sketch(random_pairs(30, 40, dtype=dtype), away_from)
    eps = torch.finfo(dtype).eps
    nonzero = frame.right.norm(dim=0) > 0
    assert nonzero.sum() == min(4, 40 - s)
    assert (away_from.mT @ frame.right).abs().max() < 10 * eps
    assert orthonormality_error(frame.right[:, nonzero]) < 20 * eps


def test_columns_beyond_the_rank_of_the_gradient_are_zero():
    x, d = torch.randn(2, 9).double(), torch.randn(2, 7).double()
    frame = sketch([(x, d)], basis(9, 0))
    assert frame.left.shape == (7, 4) and frame.right.shape == (9, 4)
    assert (frame.left.norm(dim=0) > 0).tolist() == [True, True, False, False]
    assert (frame.right.norm(dim=0) > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("s", [0, 3])
def test_a_zero_gradient_gives_a_zero_frame(s):
    frame = sketch([(torch.randn(5, 9), torch.zeros(5, 7))], basis(9, s, dtype=torch.float32))
    assert not frame.left.any() and not frame.right.any()


def test_if_s_is_the_whole_space_the_frame_is_zero():
    frame = sketch(random_pairs(7, 9, dtype=torch.float32), basis(9, 9, dtype=torch.float32))
    assert not frame.left.any() and not frame.right.any()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_has_no_frame(value):
    x, d = torch.randn(5, 9), torch.randn(5, 7)
    d[2, 3] = value
    assert sketch([(x, d)], basis(9, 2, dtype=torch.float32)) is None


class Sizes(TorchDispatchMode):
    """Records the shape of every tensor that an operation returns."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                self.shapes.add(tuple(x.shape))
        return result

    def __init__(self):
        super().__init__()
        self.shapes = set()


def test_the_gradient_is_never_formed():
    m, n, tokens = 500, 400, 600
    pairs, away_from = random_pairs(m, n, batches=1, tokens=tokens, dtype=torch.float32), basis(n, 40).float()
    with Sizes() as sizes, FlopCounterMode(display=False) as flops:
        sketch(pairs, away_from)
    forming = 2 * tokens * m * n
    assert flops.get_total_flops() < 0.25 * forming
    assert not any({m, n} <= set(shape) for shape in sizes.shapes)
    assert not any(shape.count(n) == 2 or shape.count(m) == 2 for shape in sizes.shapes)  # nor an n x n projector


def test_the_gram_matrix_of_random_rows_is_that_of_the_gradient_in_expectation():
    pairs = random_pairs(7, 9, dtype=torch.float32)
    (rows,) = gradient_rows([pairs], count=40_000, generators=[generator()])
    gram = gradient_of(pairs).mT @ gradient_of(pairs)
    assert (rows.mT @ rows - gram).norm() < 0.02 * gram.norm()


def test_a_layer_is_due_once_per_period_starting_at_its_offset():
    assert [step for step in range(1, 13) if is_due(step, every=5, offset=0)] == [1, 6, 11]
    assert [step for step in range(1, 13) if is_due(step, every=5, offset=7)] == [3, 8]
    for step in range(1, 20):
        assert sum(is_due(step, every=5, offset=o) for o in range(5)) == 1


def test_refreshes_are_spread_and_layers_of_one_shape_come_together():
    big, small = torch.Size([8, 8]), torch.Size([4, 4])
    assert offsets({"a": big, "b": small, "c": big, "d": small}, every=2) == {"b": 0, "d": 0, "a": 1, "c": 1}
    assert sorted(offsets(dict.fromkeys("abc", big), every=10).values()) == [0, 3, 6]


def test_a_gradient_inside_the_protected_subspace_gives_a_zero_frame():
    """Projection leaves only rounding errors of it, and Adam would make full steps of them."""
    basis = orthonormalize(torch.randn(64, 20))
    x, d = torch.randn(100, 20) @ basis.mT, torch.randn(100, 32)
    frame = sketch([(x, d)], basis, rank=8)
    assert frame is not None
    assert not frame.left.any()
    assert not frame.right.any()
    assert not exact_frame(d.mT @ x, basis, rank=8).right.any()
