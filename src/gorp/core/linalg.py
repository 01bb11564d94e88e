"""Subspace arithmetic: the few matrix operations everything else is built from.

A *basis* is a matrix whose columns are orthonormal, kept in float32 or float64. Nothing in this file knows
about parameters, tasks or optimizers.

Shape letters
    n   dimension of the space the basis lives in (for an input-side basis, the columns of the weight)
    s   number of protected directions
    p   columns of whatever is being projected or remembered
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def project_out(x: Tensor, basis: Tensor) -> Tensor:
    """Remove from the columns of `x` everything that lies in span(`basis`): (I - S Sᵀ) X.

    The n x n projector is never formed: 4·n·s·p flops, s·p floats of scratch.

    Args:
        x: n x p, any floating dtype; computed and returned in its own.
        basis: S, n x s, orthonormal columns, the dtype of `x`. s = 0 returns `x` as it is, s = n exact zeros: what
            rounding would leave has no direction, and Adam would blow it up to full steps.
    """
    if basis.shape[1] == 0:
        return x
    if basis.shape[1] == basis.shape[0]:
        return torch.zeros_like(x)
    return x - basis @ (basis.mT @ x)


def project_out_rows(x: Tensor, basis: Tensor) -> Tensor:
    """Remove from the rows of `x` (p x n) everything that lies in span(`basis`): X (I - S Sᵀ)."""
    return project_out(x.mT, basis).mT


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """The one among floating dtypes that rounds the most."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def rounding_floor(dtype: torch.dtype, made_in: torch.dtype) -> float:
    """The share of a gradient under which what is left of it outside span(S) counts as rounding: max(√eps, 4 eps').

    Of a gradient that lies in span(S) the projection leaves rounding, about eps ‖g‖ in a random direction, and Adam,
    which divides by the size, would make full steps of it. Above √eps rounding is less than a thousandth of the rest. A
    gradient of bfloat16 products has their rounding, eps', in whatever dtype it is kept afterwards; above 4 eps' it is
    less than an eighth of the rest, and √eps', 9 % of the gradient, would stop what two like tasks still have to learn.

    Args:
        dtype: Of the gradient as it is: eps.
        made_in: Of the arithmetic that made it: eps'.
    """
    return max(torch.finfo(dtype).eps ** 0.5, 4 * torch.finfo(made_in).eps)


def stands_out(rows: Tensor, basis: Tensor, *, made_in: torch.dtype | None = None) -> Tensor:
    """Whether the part of each row outside span(`basis`) is more than rounding: ‖row (I - S Sᵀ)‖ > floor ‖row‖.

    Args:
        rows: p x n.
        basis: S, n x s.
        made_in: The dtype of the arithmetic that made the rows; that of `rows` if None. See `rounding_floor`.

    Returns:
        p booleans, on the device of `rows`.
    """
    return _above_rounding(project_out_rows(rows, basis), rows, made_in)


def project_gradient(rows: Tensor, basis: Tensor, *, made_in: torch.dtype | None = None) -> Tensor:
    """G (I - S Sᵀ), and zeros in the rows of which that leaves no more than rounding, as `stands_out` tells.

    Args:
        rows: G, p x n.
        basis: S, n x s, of the same dtype.
        made_in: See `stands_out`.
    """
    rest = project_out_rows(rows, basis)
    return rest * _above_rounding(rest, rows, made_in)[:, None]


def _above_rounding(rest: Tensor, rows: Tensor, made_in: torch.dtype | None) -> Tensor:
    floor = rounding_floor(rows.dtype, rows.dtype if made_in is None else made_in)
    return rest.norm(dim=1) > floor * rows.norm(dim=1)


def orthonormalize(x: Tensor, away_from: Tensor | None = None) -> Tensor:
    """Orthonormal columns for span(`x`), the first column along the first of `x` (QR with a positive diagonal).

    Args:
        x: n x p with p <= n and linearly independent columns.
        away_from: A basis S, n x s, that the result must be orthogonal to; the columns of `x` should be already,
            up to rounding. One more projection makes them so: errors left in would feed on themselves from task
            to task.

    Returns:
        n x p. QR alone leaves the signs of the columns to the library; here they are those of `x`.
    """
    return orthonormalize_all([x if away_from is None else project_out(x, away_from)])[0]


def orthonormalize_all(matrices: Sequence[Tensor]) -> list[Tensor]:
    """The same for several matrices, those of one shape together."""
    groups: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
    for number, x in enumerate(matrices):
        groups.setdefault((x.shape, x.dtype, x.device), []).append(number)
    result = list(matrices)
    for members in groups.values():
        q, r = torch.linalg.qr(torch.stack([matrices[number] for number in members]))
        signs = torch.where(r.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0).to(q)
        for number, one in zip(members, q * signs[:, None], strict=True):
            result[number] = one
    return result


def extend_basis(basis: Tensor, matrix: Tensor, *, energy: float) -> tuple[Tensor, Tensor]:
    """Grow `basis` until it holds more than `energy` of the squared norm of `matrix`.

        M̂ = M - S Sᵀ M                                    residual          (GPM eq. 8)
        M̂ = U Σ Vᵀ                                        SVD (`left_singular`)
        k = min { k : ‖SᵀM‖² + σ₁² + … + σₖ² > ε ‖M‖² }    energy rule       (GPM eq. 9)
        S ← [ S, u₁ … uₖ ]

    Args:
        basis: Directions already protected, n x s. May have s = 0.
        matrix: Summary of the finished task, one vector of R^n a column, n x p. For GORP Adam's first moment,
            or a sketch of the gradients.
        energy: ε, a fraction in [0, 1). Dimensionless.

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
        raise ValueError(f"energy is a fraction of the squared norm, in [0, 1); got {energy}")
    matrix = matrix.to(basis.dtype)
    total, captured = matrix.square().sum(), (basis.mT @ matrix).square().sum()
    if captured > energy * total:
        return basis, matrix.new_zeros(0)

    def needed(sigma: Tensor) -> int:
        sums = sigma.cpu().square().cumsum(0)  # CUDA has no deterministic one
        k = int((captured.cpu() + sums <= energy * total.cpu()).sum()) + 1
        # Directions below rounding are noise, and there are never more than n in all.
        above_rounding = sigma > torch.finfo(sigma.dtype).eps * max(matrix.shape) * total.sqrt()
        return min(k, int(above_rounding.sum()), basis.shape[0] - basis.shape[1])

    directions, sigma = left_singular(project_out(matrix, basis), needed)
    # Columns of U are orthogonal to S only up to rounding; orthonormalize projects a second time.
    return torch.cat([basis, orthonormalize(directions, away_from=basis)], dim=1), sigma.square()


def extend_basis_above(basis: Tensor, moment: Tensor, *, threshold: float) -> tuple[Tensor, Tensor]:
    """Grow `basis` by every direction along which the task has much, by the second moment M of its vectors.

        R = (I - S Sᵀ) M (I - S Sᵀ) = U Λ Uᵀ,   λ_1 >= λ_2 >= ...
        S ← [ S, u_i : λ_i > τ · (s + i)/n · λ̄ ],   λ̄ = (tr M - λ_max(M)) / (n - 1)

    λ̄ is what an average direction has, the largest left out: inputs of language models have one direction that is
    common to all and holds most of the energy, and a share of the whole would hide the others. The factor (s + i)/n,
    the share of the space that S holds with u_i, is the price of a direction: where S is small, as in a decoder that
    sees a handful of answers, nearly all that there is gets protected; where it is large, what is strong.

    Args:
        basis: S, n x s.
        moment: M = Σ x xᵀ, n x n, symmetric. Its eigenvalues are found in float64: in float32 they are off by
            eps·λ_max, which is more than the bound where one direction holds most. Below eps·tr M, eps of the dtype
            of M, is rounding.
        threshold: τ, without dimension.

    Returns:
        The new basis, whose first s columns are those of `basis`, and λ_i of the new directions.
    """
    wide, held = moment.double(), basis.to(moment).double()
    n, total = len(wide), wide.trace()
    rest = project_out_rows(project_out(wide, held), held)
    values, vectors = eigen((rest + rest.mT) / 2)
    taken = torch.arange(basis.shape[1] + 1, basis.shape[1] + n + 1, device=wide.device, dtype=wide.dtype) / n
    bound = threshold * taken * (total - _largest(wide)) / max(n - 1, 1)  # taken: (s + i) / n
    bound = bound.clamp(min=torch.finfo(moment.dtype).eps * total)
    k = min(int((values > bound).sum()), n - basis.shape[1])  # λ falls and the bound rises: the first k
    new = orthonormalize(vectors[:, :k].to(basis), away_from=basis)
    return torch.cat([basis, new], dim=1), values[:k].to(basis)


def leading_outside(moment: Tensor, basis: Tensor, *, count: int) -> Tensor:
    """Directions outside span(S) along which there is most: leading eigenvectors of (I - S Sᵀ) M (I - S Sᵀ).

    By subspace iteration, Z ← qr((I - S Sᵀ) M Z), 2·n²·q operations each time, q = r + 8; exact when q reaches n - s.

    Args:
        moment: M, n x n, symmetric.
        basis: S, n x s, of the same dtype.
        count: r.

    Returns:
        At most r x n, orthonormal rows, orthogonal to S, only those along which M has more than its rounding.
    """
    n, s = basis.shape
    width = min(count + 8, n - s)
    start = torch.randn(n, width, generator=torch.Generator().manual_seed(0), dtype=moment.dtype).to(moment)
    z = orthonormalize(project_out(start, basis), away_from=basis)
    for _ in range(ITERATIONS):
        # With a little of Z itself, so that columns beyond the rank of what is left stay independent.
        z = orthonormalize(project_out(moment @ z, basis) + TINY * moment.trace() * z, away_from=basis)
    values, turn = eigen(z.mT @ moment @ z)  # q x q
    count = min(count, int((values > 4 * torch.finfo(moment.dtype).eps * moment.trace()).sum()))
    return orthonormalize(z @ turn[:, :count], away_from=basis).mT


ITERATIONS = 12
"""Of subspace and power iterations. Where two eigenvalues are so near that these do not part them, either will do."""

TINY = 1e-12


def _largest(moment: Tensor) -> Tensor:
    """λ_max of a symmetric matrix without negative eigenvalues, by power iteration; at most a little too small."""
    x = moment.sum(dim=1) + moment.diagonal()
    for _ in range(ITERATIONS):
        x = moment @ (x / x.norm().clamp(min=1e-30))
    return x.norm()


def eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below zero, and eigenvectors (columns) of a Gram matrix, in descending order."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def left_singular(x: Tensor, needed: Callable[[Tensor], int]) -> tuple[Tensor, Tensor]:
    """The first left singular vectors U of `x` and their singular values, in descending order; no SVD of float32.

        Xᵀ X = V Σ² Vᵀ,  U = X V Σ⁻¹      in float64; where X is wide, X Xᵀ = U Σ² Uᵀ

    Squares halve the digits, and float64 has twice those of float32: what is above the rounding of a float32 matrix,
    eps·σ₁, is found as by an SVD, in less time the taller `x` is.

    Args:
        x: n x p; float32, or float64, which goes through an SVD.
        needed: Tells from all min(n, p) singular values how many are wanted; none below the rounding of `x`.

    Returns:
        U, n x k, and k singular values, in the dtype of `x`.
    """
    if x.dtype == torch.float64:
        left, sigma, _ = torch.linalg.svd(x, full_matrices=False)
        k = needed(sigma)
        return left[:, :k], sigma[:k]
    wide = x.double()
    tall = x.shape[0] > x.shape[1]
    squared, vectors = eigen(wide.mT @ wide if tall else wide @ wide.mT)
    sigma = squared.sqrt()
    k = needed(sigma.to(x.dtype))
    sigma, vectors = sigma[:k], vectors[:, :k]
    return (wide @ (vectors / sigma) if tall else vectors).to(x.dtype), sigma.to(x.dtype)
