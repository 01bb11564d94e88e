"""Hypothesis strategies and helpers: bases and matrices, the awkward ones included."""

import torch
from hypothesis import strategies as st
from torch import Tensor


KINDS = ("full", "rank one", "zero", "inside the basis", "across the basis")


@st.composite
def basis_and_matrix(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """An n x s basis and an n x p matrix: s from 0 to n, ranks from 0 up, scales from 1e-6 to 1e6."""
    n, p = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    s = draw(st.sampled_from([0, n]) | st.integers(0, n))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    basis = torch.linalg.qr(randn(n, s)).Q
    kind = draw(st.sampled_from(KINDS))
    matrix = {
        "full": lambda: randn(n, p),
        "rank one": lambda: randn(n, 1) @ randn(1, p),
        "zero": lambda: torch.zeros(n, p, dtype=dtype),
        "inside the basis": lambda: basis @ randn(s, p),
        "across the basis": lambda: basis @ randn(s, p) + 1e-3 * randn(n, 1) @ randn(1, p),
    }[kind]()
    return basis, matrix * 10.0 ** draw(st.integers(-6, 6))


def basis(n: int, s: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """A random basis, n x s."""
    return torch.linalg.qr(torch.randn(n, s, dtype=dtype)).Q


def decaying(m: int, n: int, *, rate: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """An m x n matrix with random singular vectors and the singular values 1, rate, rate² and so on."""
    r = min(m, n)
    sigma = rate ** torch.arange(r, dtype=dtype)
    return (basis(m, r, dtype=dtype) * sigma) @ basis(n, r, dtype=dtype).mT


def projector(x: Tensor) -> Tensor:
    """X Xᵀ: what the columns span, whatever their signs and order."""
    return x @ x.mT


def orthonormality_error(basis: Tensor) -> float:
    """Largest entry of |SᵀS - I|. Zero for a perfect basis, and for an empty one."""
    gram = basis.mT @ basis
    return (gram - torch.eye(len(gram), dtype=gram.dtype)).abs().amax().item() if len(gram) else 0.0
