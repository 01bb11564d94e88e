"""Laws of subspace arithmetic, for all n, p and s and at every scale."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gorp.core.linalg import (
    exceeds_rounding,
    extend_basis,
    extend_basis_above,
    leading_outside,
    left_singular,
    orthonormalize,
    project_out,
    project_out_rows,
)
from tests.matrices import basis as random_basis
from tests.matrices import basis_and_matrix, orthonormality_error


energies = st.floats(0.0, 0.999)


def assert_close(actual, expected, *, scale):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * max(float(scale), 1e-30))


class TestProjectOut:
    @given(basis_and_matrix())
    def test_the_result_is_orthogonal_to_the_basis(self, case):
        basis, x = case
        inside = basis.mT @ project_out(x, basis)
        assert_close(inside, torch.zeros_like(inside), scale=x.norm())

    @given(basis_and_matrix())
    def test_is_idempotent(self, case):
        basis, x = case
        once = project_out(x, basis)
        assert_close(project_out(once, basis), once, scale=x.norm())

    @given(basis_and_matrix())
    def test_squared_norms_of_both_parts_add_up(self, case):
        basis, x = case
        kept, removed = project_out(x, basis), basis.mT @ x
        assert_close(kept.norm() ** 2 + removed.norm() ** 2, x.norm() ** 2, scale=x.norm() ** 2)

    @given(basis_and_matrix(), st.integers(0, 2**32))
    def test_depends_only_on_the_span_of_the_basis(self, case, seed):
        basis, x = case
        s = basis.shape[1]
        rotation = torch.linalg.qr(torch.randn(s, s, generator=torch.Generator().manual_seed(seed)).double()).Q
        assert_close(project_out(x, basis @ rotation), project_out(x, basis), scale=x.norm())

    @given(basis_and_matrix())
    def test_projecting_rows_is_projecting_the_transpose(self, case):
        basis, x = case
        assert torch.equal(project_out_rows(x.mT, basis), project_out(x, basis).mT)

    def test_a_basis_of_the_whole_space_leaves_exact_zeros(self):
        """Rounding errors instead of zeros would become full steps of Adam."""
        basis = random_basis(6, 6, dtype=torch.float32)
        assert torch.equal(project_out(torch.randn(6, 4), basis), torch.zeros(6, 4))


class TestExtendBasis:
    @given(basis_and_matrix(), energies)
    def test_the_new_basis_is_orthonormal(self, case, energy):
        basis, matrix = case
        assert orthonormality_error(extend_basis(basis, matrix, energy=energy)[0]) < 1e-12

    @given(basis_and_matrix(), energies)
    def test_old_columns_stay_and_there_are_at_most_n(self, case, energy):
        basis, matrix = case
        grown, _ = extend_basis(basis, matrix, energy=energy)
        assert torch.equal(grown[:, : basis.shape[1]], basis)
        assert grown.shape[1] <= grown.shape[0]

    @given(basis_and_matrix(), energies)
    def test_the_new_basis_holds_the_requested_energy(self, case, energy):
        basis, matrix = case
        grown, _ = extend_basis(basis, matrix, energy=energy)
        assert (grown.mT @ matrix).norm() ** 2 >= energy * matrix.norm() ** 2 * (1 - 1e-12)

    @given(basis_and_matrix(), energies)
    def test_adds_no_more_directions_than_needed(self, case, energy):
        basis, matrix = case
        grown, _ = extend_basis(basis, matrix, energy=energy)
        if grown.shape[1] > basis.shape[1]:
            without_last = (grown[:, :-1].mT @ matrix).norm() ** 2
            assert without_last <= energy * matrix.norm() ** 2 * (1 + 1e-12)

    @given(basis_and_matrix(), energies)
    def test_the_same_matrix_adds_nothing_a_second_time(self, case, energy):
        basis, matrix = case
        once, _ = extend_basis(basis, matrix, energy=energy)
        assert extend_basis(once, matrix, energy=energy)[0].shape == once.shape

    @given(basis_and_matrix(), energies)
    def test_returns_the_energy_of_each_new_direction_in_descending_order(self, case, energy):
        basis, matrix = case
        grown, added = extend_basis(basis, matrix, energy=energy)
        new = grown[:, basis.shape[1] :]
        assert_close(added, (new.mT @ matrix).square().sum(dim=1), scale=matrix.norm() ** 2)
        assert torch.equal(added, added.sort(descending=True).values)

    def test_number_of_directions_by_the_energy_rule_computed_by_hand(self):
        """Singular values 3, 2, 1: two directions hold 13/14 of the energy, one holds 9/14."""
        matrix, nothing = torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.zeros(3, 0)
        sizes = [extend_basis(nothing, matrix, energy=e)[0].shape[1] for e in (0.0, 0.6, 0.65, 0.9, 0.93)]
        assert sizes == [1, 1, 2, 2, 3]

    def test_stays_orthonormal_in_float32_after_fifteen_similar_tasks(self):
        basis = random_basis(256, 8, dtype=torch.float32)
        for _ in range(15):
            inside = basis @ torch.randn(basis.shape[1], 64)
            basis, _ = extend_basis(basis, inside + 1e-3 * torch.randn(256, 64), energy=0.9999999)
        assert basis.shape[1] > 8
        assert orthonormality_error(basis) < 1e-5

    @pytest.mark.parametrize("energy", [1.0, -0.1, math.nan])
    def test_raises_if_energy_is_not_in_0_to_1(self, energy):
        with pytest.raises(ValueError, match=r"in \[0, 1\); got"):
            extend_basis(torch.zeros(3, 0), torch.ones(3, 2), energy=energy)


class TestLeftSingular:
    @pytest.mark.parametrize("shape", [(60, 20), (20, 60), (30, 30), (30, 0)])
    def test_agrees_with_a_float64_svd(self, shape):
        """Singular values from 1 down to 1e-4, which is a thousand times the rounding of float32."""
        n, p = shape
        size = min(n, p)
        sigma = torch.logspace(0, -4, size, dtype=torch.float64)
        u, v = random_basis(n, size), random_basis(p, size)
        left, values = left_singular((u * sigma @ v.mT).float(), len)
        assert values.dtype == left.dtype == torch.float32
        assert left.shape == (n, size)
        torch.testing.assert_close(values.double(), sigma, rtol=1e-2, atol=0)
        assert ((left.double() * u).sum(dim=0).abs() > 0.999).all()
        assert orthonormality_error(left) < 1e-5

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_returns_as_many_vectors_as_needed(self, dtype):
        x = torch.diag(torch.tensor([1.0, 3.0, 2.0], dtype=dtype))[:, [0, 1, 2, 0]]
        left, values = left_singular(x, lambda sigma: int((sigma > 1.5).sum()))
        torch.testing.assert_close(values, torch.tensor([3.0, 2.0], dtype=dtype))
        torch.testing.assert_close(left.abs(), torch.tensor([[0.0, 0], [1, 0], [0, 1]], dtype=dtype))


class TestOrthonormalize:
    def test_the_first_column_keeps_its_direction_and_sign(self):
        x = -torch.rand(5, 3).double()
        q = orthonormalize(x)
        torch.testing.assert_close(q[:, 0], x[:, 0] / x[:, 0].norm())
        assert orthonormality_error(q) < 1e-14

    def test_removes_rounding_errors_along_the_basis(self):
        basis = random_basis(9, 4)
        almost = project_out(torch.randn(9, 3).double(), basis) + 1e-7 * basis[:, :3]
        assert (basis.mT @ orthonormalize(almost, away_from=basis)).abs().max() < 1e-14


class TestStandsOut:
    def test_a_row_inside_the_span_does_not_stand_out_and_one_with_a_part_outside_does(self):
        basis = random_basis(50, 10, dtype=torch.float32)
        inside, outside = torch.randn(3, 10) @ basis.mT, project_out_rows(torch.randn(1, 50), basis)
        rows = torch.cat([inside, outside, inside[:1] + 0.01 * outside, torch.zeros(1, 50)])
        assert exceeds_rounding(rows, basis).tolist() == [False, False, False, True, True, False]


class TestLeadingOutside:
    @given(basis_and_matrix())
    def test_rows_hold_nearly_the_largest_possible_energy_outside_the_basis(self, case):
        basis, matrix = case
        moment = matrix @ matrix.mT
        count = min(2, len(moment) - basis.shape[1])
        rows = leading_outside(moment, basis, count=count)
        assert orthonormality_error(rows.mT) < 1e-12
        assert len(rows) <= count
        assert_close(rows @ basis, torch.zeros(len(rows), basis.shape[1], dtype=rows.dtype), scale=1)
        found = ((rows @ moment) * rows).sum()
        best = torch.linalg.svdvals(project_out(matrix, basis))[:count].square().sum()
        exact = count + 8 >= len(moment) - basis.shape[1]
        assert float(found) <= float(best) + 1e-9 * float(moment.trace())
        assert float(found) >= (1 - 1e-6 if exact else 0.9) * float(best) - 1e-9 * float(moment.trace())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("outside", [0, 2])
    def test_returns_no_row_for_directions_that_are_rounding(self, dtype, outside):
        basis = random_basis(40, 5, dtype=dtype)
        inputs = torch.randn(300, 5, dtype=dtype) @ basis.mT + 0.01 * torch.randn(300, outside, dtype=dtype) @ (
            project_out(torch.randn(40, outside, dtype=dtype), basis).mT
        )
        rows = leading_outside(inputs.mT @ inputs, basis, count=3)
        assert len(rows) == outside
        assert orthonormality_error(rows.mT) < 1e-5 and (rows @ basis).norm() < 1e-5


class TestExtendBasisAbove:
    @given(basis_and_matrix(), st.floats(1e-3, 10))
    def test_added_directions_are_above_the_bound_and_the_remaining_ones_below(self, case, threshold):
        basis, matrix = case
        moment = matrix @ matrix.mT
        grown, values = extend_basis_above(basis, moment, threshold=threshold)
        n, eigenvalues = len(moment), torch.linalg.eigvalsh(moment)
        average = float(eigenvalues[:-1].sum()) / max(n - 1, 1)
        factor = threshold * (grown.shape[1] + 1) / n  # τ · (s + i)/n of the next direction
        # Power iteration may underestimate λ_max, which raises λ̄.
        bound = factor * (average + 0.1 * float(eigenvalues[-1]) / max(n - 1, 1))
        slack = 1e-9 * float(moment.trace())
        rest = project_out(project_out(moment, grown).mT, grown)
        assert float(torch.linalg.eigvalsh((rest + rest.mT) / 2)[-1]) <= bound + slack
        for place, value in enumerate(values, start=basis.shape[1] + 1):
            assert float(value) >= threshold * place / n * average - slack
        assert orthonormality_error(grown) < 1e-12
        assert_close(grown[:, : basis.shape[1]], basis, scale=1)

    def test_a_large_common_direction_does_not_hide_the_others(self):
        moment = torch.diag(torch.tensor([1000.0, 1.0, 1.0, 0.04, 0.0], dtype=torch.float64))
        _, values = extend_basis_above(torch.zeros(5, 0, dtype=torch.float64), moment, threshold=0.1)
        assert values.tolist() == [1000.0, 1.0, 1.0]  # the bound for the fourth is 0.1 · 4/5 · 2.04 / 4 = 0.0408
        assert extend_basis(torch.zeros(5, 0, dtype=torch.float64), moment.sqrt(), energy=0.99)[0].shape[1] == 1

    @pytest.mark.parametrize("share", [0.9, 0.99])
    def test_a_large_common_direction_does_not_hide_the_others_in_float32(self, share):
        n, s = 512, 20
        basis = random_basis(n, n, dtype=torch.float64)
        decay = 0.97 ** torch.arange(n - 1, dtype=torch.float64)
        moment = (basis * torch.cat([torch.tensor([share]).double(), (1 - share) * decay / decay.sum()])) @ basis.mT
        known = basis[:, [0, *range(n - s + 1, n)]].contiguous()  # an earlier task had the common direction too
        for held in (basis[:, :0], known):
            wanted = extend_basis_above(held, moment, threshold=0.6)[0].shape[1]
            found = extend_basis_above(held.float(), moment.float(), threshold=0.6)[0].shape[1]
            assert abs(found - wanted) <= 1 and wanted < n / 2

    def test_the_bound_rises_with_the_size_of_s(self):
        moment = torch.diag(torch.tensor([1.0, 0.1, *[0.0] * 8], dtype=torch.float64))
        small, large = (torch.eye(10, dtype=torch.float64)[:, -s:] for s in (1, 7))  # orthogonal to all inputs
        # λ̄ = 0.1 / 9; for the direction of 0.1 the bound is τ · 3/10 · λ̄ = 0.1 or τ · 9/10 · λ̄ = 0.3
        taken = [len(extend_basis_above(basis, moment, threshold=29.0)[1]) for basis in (small, large)]
        assert taken == [2, 1]
