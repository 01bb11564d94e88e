"""Truncation of a delta: equal to the SVD of the matrix, whatever form the delta is stored in."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gorp.errors import ConfigError
from gorp.export.lowrank import EXACT, RANKS, SMALL, check_rank, choose_rank, distance, pair, spectrum, total_error
from gorp.weights.delta import WeightDelta


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factored(m, n, r, seed=0):
    """A delta that keeps its factors."""
    delta = WeightDelta(torch.Size([m, n]))
    delta.append(random(m, r, seed=seed), random(n, r, seed=seed + 1))
    assert delta.factors is not None
    return delta


@given(st.integers(20, 40), st.integers(20, 40), st.integers(1, 9), st.sampled_from((1, 8, 16)), st.booleans())
def test_the_pair_is_the_best_of_its_rank_and_its_error_is_the_tail_of_the_singular_values(m, n, r, rank, dense):
    delta = factored(m, n, r, seed=m * n)
    matrix = delta.dense().double()
    if dense:
        delta = WeightDelta.of(matrix.float())
    sigma = torch.linalg.svdvals(matrix)
    item = spectrum(delta)
    up, down = pair(item, rank, torch.float32)
    assert up.shape == (m, rank) and down.shape == (rank, n)
    best = sigma[rank:].norm().item()
    size = sigma.norm().item()
    assert item.norm() == pytest.approx(size, rel=1e-5)
    assert item.lost(rank) == pytest.approx(best, rel=1e-5, abs=1e-5 * size)
    assert (matrix - up.double() @ down.double()).norm().item() == pytest.approx(best, rel=1e-5, abs=1e-5 * size)
    assert not up[:, item.u.shape[1] :].any() and not down[item.u.shape[1] :].any()  # padded with zeros


@given(st.integers(20, 40), st.integers(20, 40), st.integers(1, 9), st.integers(1, 30), st.booleans())
def test_the_distance_is_that_of_the_dense_matrices(m, n, r, rank, dense):
    delta = factored(m, n, r, seed=m + n)
    matrix = delta.dense().double()
    up, down = random(m, rank, seed=3), random(rank, n, seed=4)
    if dense:
        delta = WeightDelta.of(matrix.float())
    assert distance(delta, up, down) == pytest.approx((matrix - up.double() @ down.double()).norm().item(), rel=1e-5)


def test_a_factored_delta_is_never_formed(monkeypatch):
    delta = factored(40, 30, 5)

    def refuse(self):
        raise AssertionError("formed")

    monkeypatch.setattr(WeightDelta, "dense", refuse)
    up, down = pair(spectrum(delta), 8, torch.float32)
    assert distance(delta, up, down) < 1e-5


class TestChoice:
    def test_the_smallest_rank_at_which_nothing_is_cut_off(self):
        spectra = {"a": spectrum(factored(40, 40, 3)), "b": spectrum(factored(60, 60, 9))}
        assert choose_rank(spectra) == (16, "the smallest at which nothing is cut off")
        assert all(item.lost(16) <= EXACT * item.norm() for item in spectra.values())
        assert any(item.lost(8) > EXACT * item.norm() for item in spectra.values())

    def test_else_the_smallest_below_one_percent(self):
        noise = WeightDelta.of(1000 * random(600, 1) @ random(1, 600, seed=1) + random(600, 600, seed=2))
        spectra = {"a": spectrum(noise)}
        rank, why = choose_rank(spectra)
        assert rank == 1 and "less than 1%" in why
        assert total_error(spectra, 1) < SMALL and spectra["a"].lost(512) > EXACT * spectra["a"].norm()

    def test_else_the_largest(self):
        spectra = {"a": spectrum(WeightDelta.of(random(700, 700)))}
        rank, why = choose_rank(spectra)
        assert rank == 512 and "cuts off more than 1%" in why and total_error(spectra, 512) > SMALL

    def test_the_total_error_weighs_each_weight_by_its_size(self):
        a, b = factored(40, 40, 3), factored(60, 60, 9, seed=5)
        spectra = {"a": spectrum(a), "b": spectrum(b)}
        lost = math.sqrt(sum(torch.linalg.svdvals(d.dense().double())[1:].square().sum().item() for d in (a, b)))
        assert total_error(spectra, 1) == pytest.approx(lost / math.hypot(a.norm(), b.norm()), rel=1e-6)


@pytest.mark.parametrize(("rank", "nearest"), [(60, 64), (0, 1), (-3, 1), (2, 1), (9, 8), (600, 512), (300, 320)])
def test_a_rank_that_vllm_does_not_take_is_refused_with_the_nearest(rank, nearest):
    with pytest.raises(ConfigError, match=rf"--rank {rank}: .*The nearest is {nearest}\.$"):
        check_rank(rank)
    assert nearest in RANKS
    check_rank(nearest)
