"""The sketch keeps its error bound for every stream of rows, in constant memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gorp.core.sketch import FrequentDirections


@given(st.integers(1, 6), st.integers(1, 12), st.lists(st.integers(0, 9), max_size=8), st.integers(0, 2**32))
def test_the_error_along_every_direction_is_within_the_bound(size, dimension, batches, seed):
    """0 <= AᵀA - BᵀB <= ‖A - A_j‖² / (ℓ - j), for each j < ℓ."""
    generator = torch.Generator().manual_seed(seed)
    sketch, inserted = FrequentDirections(size, dimension), [torch.zeros(0, dimension)]
    decay = 0.7 ** torch.arange(dimension)
    for count in batches:
        inserted.append(torch.randn(count, dimension, generator=generator) * decay)
        sketch.insert(inserted[-1])
    a, b = torch.cat(inserted).double(), sketch.rows.double()
    lost = torch.linalg.eigvalsh(a.mT @ a - b.mT @ b)
    tails = torch.cat([torch.linalg.svdvals(a).square(), torch.zeros(size)]).flip(0).cumsum(0).flip(0)
    bound = min(tails[j].item() / (size - j) for j in range(size))
    rounding = 1e-5 * a.norm().item() ** 2 + 1e-12
    assert lost.min() >= -rounding
    assert lost.max() <= bound + rounding


@given(st.integers(1, 6), st.lists(st.integers(0, 30), max_size=6))
def test_never_holds_more_than_twice_its_size(size, batches):
    sketch = FrequentDirections(size, 5)
    for count in batches:
        sketch.insert(torch.randn(count, 5))
        assert len(sketch.rows) < 2 * size


def test_a_stream_of_lower_rank_than_the_sketch_is_kept_exactly():
    sketch, rows = FrequentDirections(4, 20), torch.randn(50, 3) @ torch.randn(3, 20)
    sketch.insert(rows)
    torch.testing.assert_close(sketch.rows.mT @ sketch.rows, rows.mT @ rows, rtol=1e-4, atol=1e-3)


def test_continues_from_saved_rows_bit_for_bit():
    first, second, rows = FrequentDirections(3, 7), FrequentDirections(3, 7), torch.randn(40, 7)
    first.insert(rows[:20])
    second.load(first.rows.clone())
    first.insert(rows[20:])
    second.insert(rows[20:])
    assert torch.equal(first.rows, second.rows)


def test_raises_if_the_size_is_below_one():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        FrequentDirections(0, 5)
