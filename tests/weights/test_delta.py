"""A delta adds exactly, keeps small steps, and stays in the row space of its factors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gorp.core.linalg import project_out
from gorp.weights.delta import WeightDelta, leak, pack_deltas, unpack_deltas
from tests.matrices import basis


def added_to(base, delta):
    """Return round(W₀ + delta)."""
    total = base.to(torch.promote_types(base.dtype, torch.float32), copy=True)
    delta.add_to(total, slice(None))
    return total.to(base.dtype)


def factors(m, n, r, dtype=torch.float64):
    return torch.randn(m, r, dtype=dtype), torch.randn(n, r, dtype=dtype)


@given(st.integers(1, 20), st.integers(1, 20), st.lists(st.integers(0, 6), max_size=6), st.integers(0, 2**32))
def test_equals_the_sum_of_the_appended_products(m, n, ranks, seed):
    torch.manual_seed(seed)
    delta, total = WeightDelta(torch.Size([m, n])), torch.zeros(m, n).double()
    for r in ranks:
        left, right = factors(m, n, r)
        delta.append(left, right)
        total = total + left @ right.mT
    torch.testing.assert_close(delta.dense().double(), total, rtol=1e-12, atol=1e-12)
    x = torch.randn(n, 3).double()
    torch.testing.assert_close(delta.times(x).double(), total @ x, rtol=1e-12, atol=1e-11)
    assert delta.is_dense or sum(ranks) * (m + n) < max(m * n, 1) or not ranks


def test_becomes_dense_once_the_factors_are_as_large_as_the_matrix():
    delta = WeightDelta(torch.Size([10, 10]))
    delta.append(*factors(10, 10, 4))
    assert not delta.is_dense and delta.rank == 4
    delta.append(*factors(10, 10, 1))
    assert delta.is_dense and delta.rank == 10


@pytest.mark.parametrize(("r1", "r2"), [(2, 3), (2, 9), (9, 2), (9, 9), (0, 2), (2, 0)])
def test_adds_another_delta_whichever_of_the_two_is_dense(r1, r2):
    a, b = (WeightDelta(torch.Size([12, 10])) for _ in range(2))
    a.append(*factors(12, 10, r1))
    b.append(*factors(12, 10, r2))
    expected = a.dense() + b.dense()
    a.add(b)
    torch.testing.assert_close(a.dense(), expected)


class TestRecompress:
    @given(st.integers(0, 8), st.sampled_from([0.0, 1e-7, 1e-3, 0.3]), st.integers(0, 2**32))
    def test_the_error_is_within_the_tolerance_and_is_returned(self, r, tolerance, seed):
        torch.manual_seed(seed)
        delta = WeightDelta(torch.Size([40, 30]))
        left, right = factors(40, 30, r)
        delta.append(left * 10.0 ** -torch.arange(r), right)
        before = delta.dense()
        error = delta.recompress(tolerance)
        made = (delta.dense() - before).norm() / before.norm().clamp(min=1e-30)
        assert error <= tolerance
        assert made == pytest.approx(error, rel=1e-3, abs=1e-12)

    def test_removes_zero_and_repeated_columns(self):
        delta = WeightDelta(torch.Size([40, 30]))
        left, right = factors(40, 30, 2)
        for _ in range(3):
            delta.append(left, right)
            delta.append(torch.zeros(40, 2), torch.randn(30, 2))
        expected = delta.dense()
        delta.recompress(1e-7)
        assert delta.rank == 2
        torch.testing.assert_close(delta.dense(), expected, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("tolerance", [1e-7, 0.3])
    def test_a_delta_orthogonal_to_s_stays_orthogonal(self, tolerance):
        away_from = basis(30, 5, dtype=torch.float32)
        delta = WeightDelta(torch.Size([40, 30]))
        for _ in range(3):
            left, right = factors(40, 30, 4, torch.float32)
            delta.append(left, project_out(project_out(right, away_from), away_from))
        delta.recompress(tolerance)
        assert leak(delta, away_from) < 1e-6

    def test_does_not_change_a_dense_delta(self):
        delta = WeightDelta.of(torch.randn(4, 3))
        before = delta.dense().clone()
        assert delta.recompress(0.5) == 0.0
        assert torch.equal(delta.dense(), before)


class TestAdding:
    def test_small_steps_survive_in_a_bfloat16_model(self):
        """A thousand steps of 1e-6 on a weight of 0.02 would all be lost if added in place in bfloat16."""
        base = torch.full((8, 8), 0.02).bfloat16()
        delta = WeightDelta(base.shape)
        for _ in range(1000):
            delta.append(torch.full((8, 1), 1e-6), torch.ones(8, 1))
        assert torch.equal(base + torch.tensor(1e-6).bfloat16(), base)
        expected = (base.float() + 1e-3).bfloat16()
        assert torch.equal(added_to(base, delta), expected)
        assert not torch.equal(expected, base)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_an_empty_delta_changes_no_bit(self, dtype):
        base = torch.randn(5, 4, dtype=dtype)
        assert torch.equal(added_to(base, WeightDelta(base.shape)), base)


def test_leak_of_a_change_partly_along_the_basis():
    basis = torch.tensor([[1.0], [0.0]])
    assert leak(WeightDelta.of(torch.tensor([[3.0, 4.0]])), basis) == pytest.approx(0.6)
    assert leak(WeightDelta(torch.Size([1, 2])), basis) == 0.0


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 9), st.integers(0, 2**32))
def test_the_norm_equals_that_of_the_dense_matrix(m, n, r, seed):
    torch.manual_seed(seed)
    delta = WeightDelta(torch.Size([m, n]))
    delta.append(*factors(m, n, r))
    assert delta.norm() == pytest.approx(delta.dense().norm().item(), rel=1e-9, abs=1e-12)


def test_adding_a_block_of_rows_adds_these_rows_only():
    delta, total = WeightDelta(torch.Size([12, 10])), torch.zeros(12, 10).double()
    delta.append(*factors(12, 10, 2))
    delta.add_to(total[3:7], slice(3, 7))
    torch.testing.assert_close(total[3:7], delta.dense()[3:7])
    assert not total[:3].any() and not total[7:].any()


class TestFiles:
    def test_keys_show_whether_a_delta_is_factored(self):
        dense, factored = WeightDelta.of(torch.randn(4, 3)), WeightDelta(torch.Size([40, 30]))
        factored.append(*factors(40, 30, 2))
        packed = pack_deltas({"d": dense, "f": factored, "bias": WeightDelta(torch.Size([7]))})
        assert {name: tuple(x.shape) for name, x in packed.items()} == {
            "d": (4, 3),
            "f::left": (40, 2),
            "f::right": (30, 2),
            "bias": (7,),
        }
        assert {x.dtype for x in packed.values()} == {torch.float32}

    @pytest.mark.parametrize("ranks", [[], [0], [2], [2, 3], [20]])
    def test_a_delta_read_from_a_file_continues_bit_for_bit(self, ranks):
        kept = WeightDelta(torch.Size([40, 30]))
        for r in ranks:
            kept.append(*factors(40, 30, r, torch.float32))
        restored = unpack_deltas(pack_deltas({"w": kept}))["w"]
        left, right = factors(40, 30, 4, torch.float32)
        for delta in (kept, restored):
            delta.append(left, right)
            delta.append(right=right, left=2 * left)
            delta.recompress(1e-7)
        assert restored.is_dense == kept.is_dense
        assert torch.equal(restored.dense(), kept.dense())


@pytest.mark.parametrize("ranks", [(0, 2), (2, 2), (2, 0), (3, 9), (9, 2)])
def test_since_returns_what_was_added_after_an_earlier_state(ranks):
    """Appended columns if both are factored, otherwise (or for other factors of the same sum) the difference."""
    delta, first, later = (WeightDelta(torch.Size([6, 8])) for _ in range(3))
    added = []
    for rank, parts in zip(ranks, ((delta, first), (delta,)), strict=True):
        if rank:
            left, right = torch.randn(6, rank), torch.randn(8, rank)
            added.append((left, right))
            for part in parts:
                part.append(left, right)
    since = delta.since(first)
    expected = added[-1][0] @ added[-1][1].mT if ranks[1] else torch.zeros(6, 8)
    torch.testing.assert_close(since.dense(), expected, rtol=0, atol=2e-6)
    if sum(ranks) < 4:
        assert since.rank == ranks[1]
    later.append(torch.randn(6, 1), torch.randn(8, 1))
    torch.testing.assert_close(later.since(delta).dense(), later.dense() - delta.dense())


@given(
    st.integers(1, 12), st.integers(1, 12), st.lists(st.integers(0, 3), min_size=3, max_size=3), st.integers(0, 2**32)
)
def test_the_difference_of_two_branches_is_exact_and_without_their_common_columns(m, n, ranks, seed):
    torch.manual_seed(seed)
    size = torch.Size([m, n])
    shared, mine, others = (factors(m, n, r) for r in ranks)
    one, other = WeightDelta(size), WeightDelta(size)
    for delta, own in ((one, mine), (other, others)):
        delta.append(*shared)
        delta.append(*own)
    difference = one.minus(other)
    expected = mine[0] @ mine[1].mT - others[0] @ others[1].mT
    torch.testing.assert_close(difference.dense().double(), expected, rtol=1e-10, atol=1e-10)
    if not one.is_dense and not other.is_dense and not difference.is_dense:
        assert difference.rank == ranks[1] + ranks[2]
    same = one.minus(one)
    assert same.norm() == 0.0


@pytest.mark.parametrize("mine", ["dense", "factored", "empty"])
@pytest.mark.parametrize("others", ["dense", "factored", "empty"])
def test_the_difference_of_any_two_forms(mine, others):
    torch.manual_seed(0)
    made = []
    for form in (mine, others):
        delta = WeightDelta(torch.Size([10, 12]))
        if form == "factored":
            delta.append(*factors(10, 12, 2, torch.float32))
        made.append(WeightDelta.of(torch.randn(10, 12)) if form == "dense" else delta)
    before = [delta.dense().clone() for delta in made]
    found = made[0].minus(made[1])
    torch.testing.assert_close(found.dense(), before[0] - before[1])
    assert found.is_dense == ("dense" in (mine, others))
    assert all(torch.equal(delta.dense(), kept) for delta, kept in zip(made, before, strict=True))  # not changed
