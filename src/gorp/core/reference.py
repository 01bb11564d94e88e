"""Reference implementation of the whole algorithm for one weight: dense gradients, full SVDs, float64.

Read this version beside the paper. `tests/core/test_reference.py` checks that the fast implementation computes the
same weights. The reference stores W itself and updates it at every step. The fast implementation accumulates the steps
of one frame in a k x k core, never forms G, and stores the change of W as factors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gorp.core.frame import Frame, exact_frame, is_due
from gorp.core.linalg import extend_basis, project_out, project_out_rows


def adam_direction(
    grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, step: int, betas: tuple[float, float], eps: float
) -> Tensor:
    """Return one bias-corrected Adam direction; updates the moments in place. arXiv:1412.6980, algorithm 1.

    Args:
        grad: gₜ, any shape.
        exp_avg: m, same shape.
        exp_avg_sq: v, same shape.
        step: t, counted from 1.
        betas: β₁ and β₂.
        eps: Added to √v̂.
    """
    beta1, beta2 = betas
    exp_avg.lerp_(grad, 1 - beta1)  # mₜ = β₁ mₜ₋₁ + (1 - β₁) gₜ
    exp_avg_sq.lerp_(grad.square(), 1 - beta2)  # vₜ = β₂ vₜ₋₁ + (1 - β₂) gₜ²
    m_hat = exp_avg / (1 - beta1**step)
    v_hat = exp_avg_sq / (1 - beta2**step)
    return m_hat / (v_hat.sqrt() + eps)


def carried_moments(exp_avg: Tensor, exp_avg_sq: Tensor, old: Frame, new: Frame) -> tuple[Tensor, Tensor]:
    """Return Adam's k x k moments m and v of a core in its new frame, one entry at a time (`gorp.core.moments`).

    v is filled by its old entries in proportion to what the old frame does not span. An entry whose column in `old` is
    zero is filled by the mean of the others.
    """
    k = len(exp_avg)
    nonzero = [[i for i in range(k) if side[:, i].any()] for side in (old.left, old.right)]
    known = [exp_avg_sq[i, j] for i in nonzero[0] for j in nonzero[1]]
    m, v = torch.zeros_like(exp_avg), torch.zeros_like(exp_avg_sq)
    for i in range(k):
        for j in range(k):
            left, right = old.left.mT @ new.left[:, i], old.right.mT @ new.right[:, j]  # cosines with the old columns
            m[i, j] = left @ exp_avg @ right
            share = left.square().sum() * right.square().sum()  # c_ij: how much of u_i v_jᵀ the old frame spans
            fill = exp_avg_sq[i, j] if i in nonzero[0] and j in nonzero[1] else sum(known) / max(len(known), 1)
            v[i, j] = left.square() @ exp_avg_sq @ right.square() + (1 - share).clamp(min=0) * fill
    return m, v


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """Hyper-parameters of the algorithm, named as in the paper."""

    mode: str = "strict"
    """"strict" or "paper"."""
    k: int = 8
    """Rank of the core."""
    T: int = 10
    """Steps between two refreshes of the frame."""
    lora_rate: float = 1e-3
    """η, learning rate of A and B."""
    core_rate: float = 1e-3
    """η α, learning rate of the full-rank branch."""
    lora_scale: float = 1.0
    """s = lora_alpha / r."""
    weight_decay: float = 0.0
    """Decoupled weight decay of A and B; the core has none."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    energy: float = 0.97
    """ε of the energy rule by which S grows."""
    moments: str = "rotate"
    """What happens to Adam's moments at a refresh: "rotate", "keep" or "reset"."""


class ReferenceWeight:
    """One weight W with both branches, W_eff = W + s B A; the full-rank branch updates W itself.

    Args:
        weight: W, m x n.
        down: A, r x n, at the start of the task.
        up: B, m x r.
        settings: The hyper-parameters.
        basis: S, n x s, the protected subspace of earlier tasks. In paper mode it constrains A only.
        core_basis: S of the full-rank branch in its k x k coordinates, k x s; for paper mode only.
    """

    def __init__(
        self,
        weight: Tensor,
        down: Tensor,
        up: Tensor,
        settings: ReferenceSettings,
        *,
        basis: Tensor | None = None,
        core_basis: Tensor | None = None,
    ) -> None:
        self.settings = settings
        self.weight, self.down, self.up = weight.double(), down.double(), up.double()
        k, n = settings.k, weight.shape[1]
        self.basis = torch.zeros(n, 0).double() if basis is None else basis.double()
        self.core_basis = torch.zeros(k, 0).double() if core_basis is None else core_basis.double()
        self.step_count = self.core_step = 0
        self.frame = None
        self.core_moments = {"exp_avg": torch.zeros(k, k).double(), "exp_avg_sq": torch.zeros(k, k).double()}
        self.down_moments = (torch.zeros_like(self.down), torch.zeros_like(self.down))
        self.up_moments = (torch.zeros_like(self.up), torch.zeros_like(self.up))

    def effective(self) -> Tensor:
        """Return W + s B A, the matrix by which the layer multiplies."""
        return self.weight + self.settings.lora_scale * self.up @ self.down  # (m, r) @ (r, n)

    def step(self, gradient: Tensor) -> None:
        """Do one optimizer step for the gradient G = dL/dW_eff, m x n."""
        self.step_count += 1
        grad_down = self.settings.lora_scale * self.up.mT @ gradient  # G_A = s Bᵀ G: (r, m) @ (m, n)
        grad_up = self.settings.lora_scale * gradient @ self.down.mT  # G_B = s G Aᵀ: (m, n) @ (n, r)
        self._full_rank_branch(gradient)
        self._lora_branch(grad_down, grad_up)

    def _full_rank_branch(self, gradient: Tensor) -> None:
        s = self.settings
        empty = torch.zeros(gradient.shape[1], 0).double()
        away_from = self.basis if s.mode == "strict" else empty
        if is_due(self.step_count, every=s.T, offset=0):
            new = exact_frame(gradient, away_from, rank=s.k)  # strict: G (I - S Sᵀ) = U Σ Vᵀ; paper: G = U Σ Vᵀ
            has_columns = self.frame is not None and bool(self.frame.left.any())
            if self.frame is not None and has_columns and s.moments == "rotate":
                moments = carried_moments(*self.core_moments.values(), self.frame, new)
                self.core_moments = dict(zip(self.core_moments, moments, strict=True))
            elif s.moments == "reset" or (s.moments == "rotate" and not has_columns):
                self.core_step = 0
                for moment in self.core_moments.values():
                    moment.zero_()
            self.frame = new
        assert self.frame is not None
        reduced = self.frame.left.mT @ gradient @ self.frame.right  # G' = Uᵀ G V: (k, m) @ (m, n) @ (n, k)
        if is_due(self.step_count, every=s.T, offset=0):
            reduced = reduced.diagonal().diag()  # = Σ; Adam would make full steps of the rounding off the diagonal
        reduced = project_out(reduced, self.core_basis)  # P = G' - S Sᵀ G', paper mode only: empty in strict mode
        self.core_step += 1
        normalized = self._adam(reduced, *self.core_moments.values(), step=self.core_step)  # N
        self.weight = (
            self.weight - s.core_rate * self.frame.left @ normalized @ self.frame.right.mT
        )  # W ← W - η α U N Vᵀ

    def _lora_branch(self, grad_down: Tensor, grad_up: Tensor) -> None:
        s = self.settings
        grad_down = project_out_rows(grad_down, self.basis)  # G_A ← G_A (I - S Sᵀ)
        shrink = 1 - s.lora_rate * s.weight_decay
        self.down = shrink * self.down - s.lora_rate * self._adam(grad_down, *self.down_moments, step=self.step_count)
        self.up = shrink * self.up - s.lora_rate * self._adam(grad_up, *self.up_moments, step=self.step_count)
        if s.mode == "strict":
            self.down = project_out_rows(self.down, self.basis)  # A ← A (I - S Sᵀ): removes what Adam put along S

    def _adam(self, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, step: int) -> Tensor:
        s = self.settings
        return adam_direction(grad, exp_avg, exp_avg_sq, step=step, betas=s.betas, eps=s.eps)

    def grown_basis(self) -> Tensor:
        """Return S after this task in strict mode, from the first moments of both branches, each scaled to norm 1."""
        assert self.frame is not None
        rows = [self.down_moments[0], self.core_moments["exp_avg"] @ self.frame.right.mT]  # r x n; (k, k) @ (k, n)
        matrix = torch.cat([r / r.norm() for r in rows]).mT  # n x (r + k)
        return extend_basis(self.basis, matrix, energy=self.settings.energy)[0]
