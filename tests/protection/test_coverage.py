"""Coverage is exact, output change is an unbiased estimate, and neither stores rows of a task."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gorp.core.memory import SubspaceMemory
from gorp.layers.inputs import PROJECTIONS, InputMoment, InputSums, SharedInputs, on_all_ranks
from gorp.protection.coverage import Coverage, centred_outputs, covered
from gorp.weights.delta import WeightDelta
from tests.matrices import basis


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sums_of(*batches: Tensor, seed: int = 0) -> InputSums:
    """Return the sums that a watch computes for batches of rows, N x n; rows of zeros have no gradient."""
    layer = nn.Linear(batches[0].shape[1], 3, bias=False, dtype=batches[0].dtype)
    shared = SharedInputs()
    watch = InputMoment(layer, seed, shared)
    for x in batches:
        (layer(x) * (x != 0).any(dim=1, keepdim=True)).sum().backward()
        shared.finish()
    watch.remove()
    return on_all_ranks(watch.sums)


def factored(left: Tensor, right: Tensor) -> WeightDelta:
    delta = WeightDelta(torch.Size([len(left), len(right)]))
    delta.append(left, right)
    return delta


def entered(coverage: Coverage, task: str, name: str, x: Tensor, weight: Tensor, *, s: int = 2) -> Tensor:
    """Store the input summary of a task with these rows and a random S; return S."""
    space = basis(x.shape[1], s, dtype=x.dtype)
    coverage.add_task(task, name, sums_of(x), basis=space, weight=weight)
    return space


@given(n=st.integers(1, 10), share=st.floats(0, 1), count=st.integers(1, 20), seed=st.integers(0, 2**16))
@settings(deadline=None)
def test_coverage_is_the_share_of_the_rows_squared_norm_in_s(n, share, count, seed):
    x, space = randn(count, n, seed=seed, dtype=torch.float64), basis(n, round(share * n))
    slow = sum((space.mT @ row).square().sum() for row in x) / sum(row.square().sum() for row in x)
    assert covered(space, sums_of(x).total) == pytest.approx(float(slow), abs=1e-12)


def test_centred_outputs_are_squared_distances_from_the_mean_and_zero_for_equal_outputs():
    x, weight = randn(50, 8) + 3.0, randn(5, 8, seed=1)
    y = x @ weight.mT
    assert centred_outputs(weight, sums_of(x)) == pytest.approx((y - y.mean(dim=0)).square().sum().item(), rel=1e-4)
    assert centred_outputs(weight, sums_of(x[:1].expand(50, 8))) == 0.0


def test_random_signs_do_not_depend_on_batches_or_padding():
    x, padding = randn(40, 6), torch.zeros(3, 6)
    whole = sums_of(x)
    cut = sums_of(torch.cat([x[:7], padding, x[7:12]]), torch.cat([padding, x[12:], padding]))
    assert whole.count == cut.count == 40
    torch.testing.assert_close(cut.projected, whole.projected)
    assert not torch.allclose(sums_of(x, seed=1).projected, whole.projected)


def test_the_estimate_is_unbiased_and_has_the_documented_standard_deviation():
    x, change = randn(60, 8), randn(5, 3, seed=1) @ randn(3, 8, seed=2)
    exact = (x @ change.mT).square().sum()
    found = torch.stack([(change @ sums_of(x, seed=seed).projected).square().sum() for seed in range(600)]) / exact
    assert found.mean().item() == pytest.approx(1.0, abs=4 * found.std().item() / 600**0.5)
    gram = change @ x.mT @ x @ change.mT
    assert found.std().item() == pytest.approx((2 / PROJECTIONS) ** 0.5 * (gram.norm() / gram.trace()).item(), rel=0.15)
    assert found.std().item() < 0.5


def test_output_change_adds_up_over_later_tasks():
    x, weight = randn(60, 8), randn(5, 8, seed=1)
    first, second = factored(randn(5, 1, seed=2), randn(8, 1, seed=3)), WeightDelta.of(0.3 * randn(5, 8, seed=4))
    coverage = Coverage()
    entered(coverage, "a", "w", x, weight)
    coverage.add_change("w", first)
    coverage.add_change("another", second)
    entered(coverage, "b", "w", x, weight + first.dense())
    coverage.add_change("w", second)

    projected = sums_of(x).projected
    for task, change, then in (
        ("a", first.dense() + second.dense(), weight),
        ("b", second.dense(), weight + first.dense()),
    ):
        estimate = (change @ projected).norm() / (then @ (x - x.mean(dim=0)).mT).norm()
        assert coverage.facts()[task]["output_change"] == pytest.approx(estimate.item(), rel=5e-3)  # bfloat16


def test_a_change_along_a_released_direction_counts():
    """R is not projected out of S."""
    x, weight = randn(60, 8), randn(5, 8, seed=1)
    coverage = Coverage()
    space = entered(coverage, "a", "w", x, weight, s=3)
    released = space[:, :1]
    coverage.add_change("w", factored(randn(5, 1, seed=2), released))
    assert coverage.facts()["a"]["output_change"] > 0.1


def test_facts_over_two_weights_computed_by_hand():
    coverage = Coverage()
    x = torch.tensor([[3.0, 0.0], [0.0, 4.0]])  # M = diag(9, 16)
    first, second = torch.eye(2)[:, :1], torch.eye(2)[:, 1:]
    coverage.add_task("t", "u", sums_of(x), basis=first, weight=torch.eye(2))
    coverage.add_task("t", "v", sums_of(x), basis=second, weight=2 * torch.eye(2))
    before = coverage.facts()["t"]
    assert (before["output_change"], before["output_change_worst"]) == (0.0, 0.0)
    assert before["coverage"] == pytest.approx(0.5)
    assert (before["coverage_worst"], before["coverage_worst_weight"]) == (pytest.approx(9 / 25), "u")

    coverage.add_change("v", factored(first, first))  # Y = 3 Ω / √8 in one row: ‖Y‖² = 9; centred outputs 12.5, 50
    facts = coverage.facts()["t"]
    assert facts["output_change"] == pytest.approx((9 / 62.5) ** 0.5, rel=5e-3)
    assert (facts["output_change_worst"], facts["output_change_worst_weight"]) == (
        pytest.approx((9 / 50) ** 0.5, rel=5e-3),
        "v",
    )
    assert json.loads(json.dumps(coverage.facts())) == coverage.facts()


def test_output_change_is_none_if_all_outputs_are_equal():
    coverage = Coverage()
    coverage.add_task("t", "w", sums_of(torch.ones(9, 2)), basis=torch.eye(2), weight=torch.eye(2))
    coverage.add_change("w", WeightDelta.of(torch.eye(2)))
    facts = coverage.facts()["t"]
    assert facts["coverage"] == 1.0
    assert facts["output_change"] is facts["output_change_worst"] is facts["output_change_worst_weight"] is None


@given(
    n=st.integers(2, 9),
    budget=st.floats(0.1, 1.0),
    threshold=st.floats(1e-3, 2.0),
    tasks=st.integers(2, 5),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=60)
def test_coverage_is_a_lower_bound_after_releases_and_exact_for_the_newest_task(n, budget, threshold, tasks, seed):
    memory, coverage = SubspaceMemory(energy=0.9, budget=budget), Coverage()
    moments = {}
    for task in map(str, range(tasks)):
        memory.begin_task()
        spectrum = 10.0 ** randn(n, seed=seed + 1000 * int(task))
        sums = sums_of(randn(3 * n, n, seed=seed + int(task)) * spectrum)
        memory.extend_above(["w"], sums.total, threshold=threshold)
        space = memory.basis("w", sums.total)
        coverage.add_task(task, "w", sums, basis=space, weight=torch.eye(n))
        coverage.release(memory.released, newest=task)
        moments[task] = sums.total
        reported = {name: entry["coverage"] for name, entry in coverage.facts().items()}
        true = {name: covered(space, moment) for name, moment in moments.items()}
        assert reported[task] == true[task]
        assert all(0 <= reported[name] <= true[name] + 1e-5 for name in moments)


def test_a_release_lowers_the_coverage_of_earlier_tasks_by_its_energy_but_not_below_zero():
    coverage = Coverage()
    for task in ("a", "b"):
        entered(coverage, task, "w", randn(20, 4), torch.eye(4), s=4)
    coverage.release({"w": torch.tensor([0.125, 0.25]), "elsewhere": torch.ones(1)}, newest="b")
    assert [entry["coverage"] for entry in coverage.facts().values()] == pytest.approx([0.625, 1.0])
    coverage.release({"w": torch.ones(1)}, newest="c")
    assert [entry["coverage"] for entry in coverage.facts().values()] == [0.0, 0.0]


def test_a_state_dict_restores_all_tasks_in_order_whatever_their_names():
    coverage, names = Coverage(), [*map(str, range(10, -1, -1)), "a::b", "a/b", "", "::"]
    for name in names:
        for weight in ("u.weight", "v.weight"):
            entered(coverage, name, weight, randn(20, 4), randn(3, 4))
        coverage.add_change("u.weight", WeightDelta.of(randn(3, 4, seed=1)))
    again = Coverage()
    again.load_state_dict(dict(sorted(coverage.state_dict().items())))  # as safetensors may order them
    assert again.facts() == coverage.facts() and list(again.facts()) == names
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in coverage.state_dict().items())


def test_the_state_contains_no_row_of_a_task():
    """Its size does not depend on the number of rows, and no column is one of them."""
    few, many = Coverage(), Coverage()
    x = randn(500, 6)
    entered(few, "t", "w", x[:20], torch.eye(6))
    entered(many, "t", "w", x, torch.eye(6))
    shapes = {key: tuple(value.shape) for key, value in many.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in few.state_dict().items()}
    assert set(shapes.values()) == {(6, PROJECTIONS), (2,)}
    columns = many.state_dict()["0::t::w::projected"].float().mT
    nearest = torch.cosine_similarity(columns[:, None], x[None], dim=2).abs().amax()
    assert nearest < 0.999 and (columns.norm(dim=1) > 3 * x.norm(dim=1).mean() / PROJECTIONS**0.5).all()
