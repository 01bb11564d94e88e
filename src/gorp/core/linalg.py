"""Subspace arithmetic: projections, orthonormalization, and rules for extending a basis.

A *basis* is a matrix with orthonormal columns in float32 or float64. This file knows nothing of parameters, tasks or
optimizers.

Shape letters
    n   dimension of the space (for an input-side basis, the number of inputs of the weight)
    s   number of protected directions, the columns of the basis
    p   number of vectors that are projected or added
"""

from collections.abc import Callable

import torch
from torch import Tensor


def project_out(x: Tensor, basis: Tensor) -> Tensor:
    """Project the columns of `x` onto the orthogonal complement of span(`basis`): (I - S Sᵀ) X.

    The n x n projector is never formed: 4·n·s·p flops, s·p floats of temporary memory.

    Args:
        x: ... x n x p, any floating dtype, which is also the dtype of the result.
        basis: S, ... x n x s, same dtype as `x`, with columns that are orthonormal or zero. If s = 0, `x` itself is
            returned. If s = n, exact zeros are returned: rounding errors there would have no meaningful direction, and
            Adam would make full steps of them.
    """
    if basis.shape[-1] == 0:
        return x
    if basis.shape[-1] == basis.shape[-2]:
        return torch.zeros_like(x)
    return x - basis @ (basis.mT @ x)  # (n, s) @ ((s, n) @ (n, p))


def project_out_rows(x: Tensor, basis: Tensor) -> Tensor:
    """Project the rows of `x`, ... x p x n, onto the orthogonal complement of span(`basis`): X (I - S Sᵀ)."""
    return project_out(x.mT, basis).mT


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """Return the floating dtype with the largest rounding error (eps)."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def rounding_floor(dtype: torch.dtype, compute_dtype: torch.dtype) -> float:
    """Return the share of a gradient's norm below which its part outside span(S) counts as rounding: max(√eps, 4 eps').

    If a gradient g lies in span(S), projecting it leaves rounding errors: about eps ‖g‖ in a random direction. Adam
    divides by their size and would make full steps of them. Above √eps, rounding is less than a thousandth of the
    remaining part. A gradient from bfloat16 products carries their rounding, eps', even when it is stored in float32.
    Above 4 eps', that rounding is less than an eighth of the remaining part. √eps' instead of 4 eps', 9 % of the
    gradient, would be too high: a task that resembles an earlier one could then learn nothing more.

    Args:
        dtype: Dtype in which the gradient is stored: eps.
        compute_dtype: Dtype in which the gradient was computed: eps'.
    """
    return max(torch.finfo(dtype).eps ** 0.5, 4 * torch.finfo(compute_dtype).eps)


def exceeds_rounding(rows: Tensor, basis: Tensor, *, compute_dtype: torch.dtype | None = None) -> Tensor:
    """Return, per row, whether its part outside span(`basis`) exceeds rounding: ‖row (I - S Sᵀ)‖ > floor ‖row‖.

    Args:
        rows: p x n.
        basis: S, n x s.
        compute_dtype: Dtype in which the rows were computed; None: the dtype of `rows`. See `rounding_floor`.

    Returns:
        p booleans, on the device of `rows`.
    """
    return _above_rounding(project_out_rows(rows, basis), rows, compute_dtype)


def project_gradient(rows: Tensor, basis: Tensor, *, compute_dtype: torch.dtype | None = None) -> Tensor:
    """Return G (I - S Sᵀ), with zeros in each row that has only rounding outside span(S) (see `exceeds_rounding`).

    Args:
        rows: G, p x n.
        basis: S, n x s, of the same dtype.
        compute_dtype: See `exceeds_rounding`.
    """
    rest = project_out_rows(rows, basis)
    return rest * _above_rounding(rest, rows, compute_dtype)[:, None]


def _above_rounding(rest: Tensor, rows: Tensor, compute_dtype: torch.dtype | None) -> Tensor:
    floor = rounding_floor(rows.dtype, rows.dtype if compute_dtype is None else compute_dtype)
    return rest.norm(dim=1) > floor * rows.norm(dim=1)


def orthonormalize(x: Tensor, away_from: Tensor | None = None) -> Tensor:
    """Return an orthonormal basis of span(`x`): the Q of a QR decomposition whose R has a positive diagonal.

    Args:
        x: ... x n x p with p <= n and linearly independent columns.
        away_from: A basis S, ... x n x s, to which the result must be orthogonal. The columns of `x` should already be
            orthogonal to it up to rounding. They are projected once more here, because the remaining error would grow
            from task to task.

    Returns:
        ... x n x p. QR alone determines the columns up to their signs; the positive diagonal fixes them, so that the
        first column points along the first column of `x`.
    """
    q, r = torch.linalg.qr(x if away_from is None else project_out(x, away_from))
    return q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q)[..., None, :]


def extend_basis(basis: Tensor, matrix: Tensor, *, energy: float) -> tuple[Tensor, Tensor]:
    """Extend `basis` until its span holds more than the share `energy` of the squared norm of `matrix`.

        M̂ = M - S Sᵀ M                                    residual          (GPM eq. 8)
        M̂ = U Σ Vᵀ                                        SVD (`left_singular`)
        k = min { k : ‖SᵀM‖² + σ₁² + … + σₖ² > ε ‖M‖² }    energy rule       (GPM eq. 9)
        S ← [ S, u₁ … uₖ ]

    Args:
        basis: S, the directions already protected, n x s; s may be 0.
        matrix: M, summary of the finished task, n x p, one vector per column. In GORP this is Adam's first moment, or
            a sketch of the gradients.
        energy: ε, a fraction in [0, 1).

    Returns:
        The new basis, n x (s + k) with s + k <= n, whose first s columns are those of `basis`; and the energies
        σ₁² … σₖ² of the k new directions, in the units of ‖M‖².

    Raises:
        ValueError: If `energy` is outside [0, 1).

    References:
        Saha et al., *Gradient Projection Memory for Continual Learning*, arXiv:2103.09762.
        Wang et al., *Continual Gradient Low-Rank Projection Fine-Tuning*, arXiv:2507.02503.
    """
    if not 0.0 <= energy < 1.0:
        raise ValueError(f"energy must be a fraction of the squared norm, in [0, 1); got {energy}")
    matrix = matrix.to(basis.dtype)
    total, captured = matrix.square().sum(), (basis.mT @ matrix).square().sum()
    if captured > energy * total:
        return basis, matrix.new_zeros(0)

    def needed(sigma: Tensor) -> int:
        sums = sigma.cpu().square().cumsum(0)  # on the CPU: CUDA has no deterministic cumsum
        k = int((captured.cpu() + sums <= energy * total.cpu()).sum()) + 1
        # Directions below rounding are noise, and the basis cannot have more than n columns.
        above_rounding = sigma > torch.finfo(sigma.dtype).eps * max(matrix.shape) * total.sqrt()
        return min(k, int(above_rounding.sum()), basis.shape[0] - basis.shape[1])

    directions, sigma = left_singular(project_out(matrix, basis), needed)
    # The columns of U are orthogonal to S only up to rounding; `orthonormalize` projects them a second time.
    return torch.cat([basis, orthonormalize(directions, away_from=basis)], dim=1), sigma.square()


def extend_basis_above(basis: Tensor, moment: Tensor, *, threshold: float) -> tuple[Tensor, Tensor]:
    """Extend `basis` by every direction in which the second moment M of the task's vectors exceeds a threshold.

        R = (I - S Sᵀ) M (I - S Sᵀ) = U Λ Uᵀ,   λ_1 >= λ_2 >= ...
        S ← [ S, u_i : λ_i > τ · (s + i)/n · λ̄ ],   λ̄ = (tr M - λ_max(M)) / (n - 1)

    λ̄ is the mean eigenvalue without the largest one. Inputs of language models have one direction that is common to
    all of them and holds most of the energy; a bound relative to the total energy would hide all other directions.
    The factor (s + i)/n is the capacity of S once u_i is added, so the bound rises as S fills. While S is small, as in
    a decoder that reads few different answers, nearly every direction is protected; when S is large, only strong ones.

    Args:
        basis: S, n x s.
        moment: M = Σ x xᵀ, n x n, symmetric. Its eigenvalues are computed in float64: in float32 their error is
            eps·λ_max, which exceeds the bound where one direction holds most of the energy. Eigenvalues below eps·tr M
            (eps of the dtype of M) are rounding and are never added.
        threshold: τ, dimensionless.

    Returns:
        The new basis, whose first s columns are those of `basis`, and λ_i of the new directions.
    """
    wide, s_wide = moment.double(), basis.to(moment).double()
    n, total = len(wide), wide.trace()
    rest = project_out_rows(project_out(wide, s_wide), s_wide)  # R, n x n
    values, vectors = eigen((rest + rest.mT) / 2)  # rounding leaves R slightly asymmetric
    # (s + i) / n for i = 1 ... n: the capacity of S if the first i directions are added
    capacity = torch.arange(basis.shape[1] + 1, basis.shape[1] + n + 1, device=wide.device, dtype=wide.dtype) / n
    bound = threshold * capacity * (total - _largest(wide)) / max(n - 1, 1)  # τ · (s + i)/n · λ̄
    bound = bound.clamp(min=torch.finfo(moment.dtype).eps * total)
    # λ_i decreases and the bound increases with i, so the directions above the bound are the first k.
    k = min(int((values > bound).sum()), n - basis.shape[1])
    new = orthonormalize(vectors[:, :k].to(basis), away_from=basis)
    return torch.cat([basis, new], dim=1), values[:k].to(basis)


def leading_outside(moment: Tensor, basis: Tensor, *, count: int) -> Tensor:
    """Return the leading eigenvectors of (I - S Sᵀ) M (I - S Sᵀ): the strongest directions outside span(S).

    Computed by subspace iteration, Z ← qr((I - S Sᵀ) M Z), with q = r + 8 columns and 2·n²·q flops per iteration; exact
    if q reaches n - s.

    Args:
        moment: M, n x n, symmetric.
        basis: S, n x s, same dtype as M.
        count: r, the number of directions wanted.

    Returns:
        Orthonormal rows orthogonal to S, at most r x n. Directions whose eigenvalue is rounding (4·eps·tr M) are left
        out.
    """
    n, s = basis.shape
    width = min(count + 8, n - s)  # q: 8 extra columns speed up convergence of the first r
    start = torch.randn(n, width, generator=torch.Generator().manual_seed(0), dtype=moment.dtype).to(moment)
    z = orthonormalize(project_out(start, basis), away_from=basis)
    for _ in range(ITERATIONS):
        # A small multiple of Z is added so that the columns stay linearly independent if q exceeds the rank of M Z.
        z = orthonormalize(project_out(moment @ z, basis) + TINY * moment.trace() * z, away_from=basis)
    values, vectors = eigen(z.mT @ moment @ z)  # Rayleigh-Ritz: (q, n) @ (n, n) @ (n, q)
    count = min(count, int((values > 4 * torch.finfo(moment.dtype).eps * moment.trace()).sum()))
    return orthonormalize(z @ vectors[:, :count], away_from=basis).mT


ITERATIONS = 12
"""Number of subspace and power iterations. If two eigenvalues are too close to be separated by so many, either
eigenvector serves."""

TINY = 1e-12
"""Multiple of tr(M) Z that `leading_outside` adds in each iteration."""


def _largest(moment: Tensor) -> Tensor:
    """Return λ_max of a symmetric positive semidefinite matrix by power iteration; it may be slightly too small."""
    x = moment.sum(dim=1) + moment.diagonal()  # a deterministic start that is not zero unless M is
    for _ in range(ITERATIONS):
        x = moment @ (x / x.norm().clamp(min=1e-30))
    return x.norm()


def eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues of Gram matrices, clamped to be at least 0, and their eigenvectors (columns), descending."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(-1).clamp(min=0), vectors.flip(-1)


def left_singular(x: Tensor, needed: Callable[[Tensor], int]) -> tuple[Tensor, Tensor]:
    """Return the first left singular vectors U of `x` and their singular values, descending, without a float32 SVD.

        Xᵀ X = V Σ² Vᵀ,  U = X V Σ⁻¹      in float64; if X is wide, X Xᵀ = U Σ² Uᵀ

    The Gram matrix holds σ², which halves the number of correct digits, but float64 has twice the digits of float32. So
    every direction above the rounding of a float32 matrix, eps·σ₁, is found as accurately as by an SVD. The taller `x`
    is, the more time this saves.

    Args:
        x: n x p, float32 or float64; float64 goes through an SVD.
        needed: Returns how many vectors are wanted, given all min(n, p) singular values. It must not ask for any whose
            singular value is below the rounding of `x`.

    Returns:
        U, n x k, and k singular values, in the dtype of `x`.
    """
    if x.dtype == torch.float64:
        left, sigma, _ = torch.linalg.svd(x, full_matrices=False)
        k = needed(sigma)
        return left[:, :k], sigma[:k]
    wide = x.double()
    tall = x.shape[0] > x.shape[1]
    squared, vectors = eigen(wide.mT @ wide if tall else wide @ wide.mT)  # the smaller of p x p and n x n
    sigma = squared.sqrt()
    k = needed(sigma.to(x.dtype))
    sigma, vectors = sigma[:k], vectors[:, :k]
    # U = X V Σ⁻¹: (n, p) @ (p, k)
    return (wide @ (vectors / sigma) if tall else vectors).to(x.dtype), sigma.to(x.dtype)
