"""N-LoRA: an L1 penalty makes each task's change sparse, so that few entries of two tasks overlap. Yang et al. 2024.

    L = L_task + λ Σ_layers ‖ΔW‖₁,    ΔW = s Bₜ Aₜ

(arXiv:2410.10179.) Each task trains a new pair, which is merged into the weights at the task's end. The released code
multiplies the factors in the other order, A B, which is r x r and defined only if m = n; here the norm is that of the
change of the weight, as the paper writes it.
"""

from dataclasses import dataclass
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from gorp.core.outputs import Batch, Outputs
from gorp.methods.base import MethodConfig
from gorp.methods.lora import LoraMethod
from gorp.ranges import BETWEEN_TASKS, NOT_NEGATIVE


BLOCK = 2**22
"""Largest number of entries of ΔW that are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class NLoraConfig(MethodConfig):
    """Options of N-LoRA."""

    strength: Annotated[float, NOT_NEGATIVE, BETWEEN_TASKS] = 1e-4
    """λ: weight of the L1 norm of the task's change. Not tuned; the released code's values belong to another norm."""


@final
class NLora(LoraMethod):
    """Adds an L1 penalty on the change, so that tasks change different entries of a weight."""

    name = "nlora"
    title = "a new LoRA pair per task, with a penalty that makes its product sparse"
    paper = "Yang et al. 2024, arXiv:2410.10179"
    Config = NLoraConfig
    loss_reads_batch = False

    @override
    def extra_loss(self, model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor | None:
        norms = [pair.scale * L1OfProduct.apply(pair.up, pair.down) for pair in self.pairs.values()]
        return self.config.strength * torch.stack(norms).sum()


class L1OfProduct(torch.autograd.Function):
    """`L1OfProduct.apply(b, a)` returns ‖B A‖₁ for B, m x r, and A, r x n.

    The forward pass also computes the gradients, sign(B A) Aᵀ and Bᵀ sign(B A), block by block of rows, and saves only
    them: no m x n matrix is kept for the backward pass. sign(0) = 0, as in torch.
    """

    @staticmethod
    def forward(ctx: Any, up: Tensor, down: Tensor) -> Tensor:
        total, up_grad, down_grad = up.new_zeros(()), torch.empty_like(up), torch.zeros_like(down)
        size = max(1, BLOCK // down.shape[1])
        for start in range(0, len(up), size):
            rows = slice(start, start + size)
            product = up[rows] @ down  # (rows, r) @ (r, n)
            total += product.abs().sum()
            sign = product.sign()
            up_grad[rows] = sign @ down.mT  # (rows, n) @ (n, r)
            down_grad.addmm_(up[rows].mT, sign)  # (r, rows) @ (rows, n)
        ctx.save_for_backward(up_grad, down_grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        up_grad, down_grad = ctx.saved_tensors
        return grad_outputs[0] * up_grad, grad_outputs[0] * down_grad
