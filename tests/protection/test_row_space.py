"""The row space of a change: equal to an SVD, and its principal angles give the leak."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gorp.core.linalg import project_out_rows
from gorp.protection.row_space import MOST, REST, row_space
from gorp.weights.delta import WeightDelta, leak


def basis(n, s, *, seed):
    """Return an n x s basis in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, s, generator=generator, dtype=torch.float64)).Q


def change(m, n, r, *, dense, seed):
    """Return a delta of rank r (at most) and the same as a matrix in float64."""
    torch.manual_seed(seed)
    left, right = torch.randn(m, r, dtype=torch.float64), torch.randn(n, r, dtype=torch.float64)
    matrix = left @ right.mT
    if dense:
        return WeightDelta.of(matrix), matrix
    delta = WeightDelta(torch.Size([m, n]))
    delta._left, delta._right = left, right  # factored whatever its rank
    return delta, matrix


sizes = st.integers(2, 20)


@given(sizes, sizes, st.integers(1, 6), st.booleans(), st.integers(0, 2**32))
def test_equals_the_svd(m, n, r, dense, seed):
    delta, matrix = change(m, n, r, dense=dense, seed=seed)
    found, sigma = row_space(delta), torch.linalg.svdvals(matrix)
    k = len(found.sigma)
    torch.testing.assert_close(found.sigma, sigma[:k], rtol=1e-9, atol=1e-9)
    assert sigma[k:].norm() <= REST * matrix.norm()  # and one direction fewer would leave out more
    assert k == 1 or sigma[k - 1 :].norm() > REST * matrix.norm()
    torch.testing.assert_close(found.directions.mT @ found.directions, torch.eye(k).double(), rtol=0, atol=1e-9)
    assert found.held == pytest.approx((sigma[:k].square().sum() / sigma.square().sum()).item())
    # Single vectors depend on how close singular values are; what the change does along them does not.
    torch.testing.assert_close((matrix @ found.directions).norm(dim=0), found.sigma, rtol=1e-7, atol=1e-7)


@given(sizes, sizes, st.integers(1, 6), st.integers(1, 8), st.booleans(), st.integers(0, 2**32))
def test_the_cosines_are_those_of_the_reference_and_give_the_leak(m, n, r, s, dense, seed):
    delta, matrix = change(m, n, r, dense=dense, seed=seed)
    protected = basis(n, min(s, n), seed=seed)
    found, (_, _, right) = row_space(delta), torch.linalg.svd(matrix, full_matrices=False)
    k = len(found.sigma)
    expected = torch.linalg.svdvals(right[:k] @ protected).clamp(max=1)
    torch.testing.assert_close(found.cosines(protected), expected, rtol=1e-6, atol=1e-6)
    # leak² = Σ σᵢ² ‖Sᵀ vᵢ‖² / ‖ΔW‖², up to what the directions leave out
    shares = (protected.mT @ found.directions).square().sum(dim=0)
    again = ((found.sigma.square() * shares).sum() / matrix.square().sum()).sqrt().item()
    assert leak(delta, protected) == pytest.approx(again, abs=2 * REST)
    assert leak(delta, protected) <= found.cosines(protected)[0].item() + 2 * REST


@given(sizes, sizes, st.integers(1, 8), st.integers(0, 2**32))
def test_of_a_change_of_rank_one_the_cosine_is_the_leak(m, n, s, seed):
    delta, _ = change(m, n, 1, dense=False, seed=seed)
    protected = basis(n, min(s, n), seed=seed)
    assert row_space(delta).cosines(protected).tolist() == pytest.approx([leak(delta, protected)], abs=1e-9)


@pytest.mark.parametrize("dense", [False, True])
def test_outside_s_all_cosines_are_rounding_and_inside_it_all_are_one(dense):
    (left, _), protected = torch.linalg.qr(torch.randn(12, 3, dtype=torch.float64)), basis(16, 5, seed=1)
    rows = torch.randn(3, 16, dtype=torch.float64)
    outside = project_out_rows(rows, protected)
    for part, cosine in ((outside, 0.0), (rows - outside, 1.0)):
        delta = WeightDelta.of(left @ part) if dense else WeightDelta.of_factors(left, part.mT)
        assert row_space(delta).cosines(protected).tolist() == pytest.approx([cosine] * 3, abs=1e-9)


def test_of_many_directions_the_leading_ones_are_found_and_the_rest_is_said():
    torch.manual_seed(0)
    u, v = basis(200, 150, seed=1), basis(180, 150, seed=2)
    sigma = 0.9 ** torch.arange(150).double()
    found = row_space(WeightDelta.of((u * sigma) @ v.mT))
    assert len(found.sigma) == MOST and found.directions.shape == (180, MOST)
    torch.testing.assert_close(found.sigma, sigma[:MOST], rtol=1e-3, atol=0)
    assert found.held == pytest.approx((sigma[:MOST].square().sum() / sigma.square().sum()).item(), rel=1e-4)


def test_float32_and_float64_agree_and_the_same_change_gives_the_same_bits():
    delta, matrix = change(30, 40, 6, dense=True, seed=3)
    narrow = WeightDelta.of(matrix.float())
    first, again = row_space(narrow), row_space(narrow)
    assert torch.equal(first.directions, again.directions) and torch.equal(first.sigma, again.sigma)
    protected = basis(40, 10, seed=4)
    torch.testing.assert_close(first.cosines(protected), row_space(delta).cosines(protected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("delta", [WeightDelta(torch.Size([4, 5])), WeightDelta.of(torch.zeros(4, 5))])
def test_no_change_has_no_directions(delta):
    found = row_space(delta)
    assert found.sigma.shape == (0,) and found.directions.shape == (5, 0) and found.held == 0.0
    assert found.cosines(basis(5, 2, seed=0)).tolist() == []
