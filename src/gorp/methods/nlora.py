"""N-LoRA: adapters whose changes are sparse, so that few entries of two tasks collide. Yang et al. 2024, 2410.10179.

    L = L_task + λ Σ_layers ‖ΔW‖₁,    ΔW = s Bₜ Aₜ

A fresh pair for each task, folded into the weights at its end. The released code multiplies the factors in the other
order, A B, which is r x r and exists only where m = n; here it is the change of the weight, as the paper writes it.
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
"""Entries of ΔW that exist at a time."""


@dataclass(frozen=True, kw_only=True)
class NLoraConfig(MethodConfig):
    """Options of N-LoRA."""

    strength: Annotated[float, NOT_NEGATIVE, BETWEEN_TASKS] = 1e-4
    """λ: weight of the absolute values of all entries that the task adds. Not tuned; the paper's values belong to
    another norm."""


@final
class NLora(LoraMethod):
    """Sparse changes, so that tasks keep out of each other's entries."""

    name = "nlora"
    title = "a fresh LoRA pair per task, its product pushed to be sparse"
    paper = "Yang et al. 2024, arXiv:2410.10179"
    Config = NLoraConfig

    @override
    def extra_loss(self, model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor | None:
        sizes = [pair.scale * L1OfProduct.apply(pair.up, pair.down) for pair in self.pairs.values()]
        return self.config.strength * torch.stack(sizes).sum()


class L1OfProduct(torch.autograd.Function):
    """`L1OfProduct.apply(b, a)`: ‖B A‖₁, B m x r and A r x n.

    The gradients, sign(B A) Aᵀ and Bᵀ sign(B A), are made with the value, from blocks of rows, and only they are kept:
    no m x n matrix is held until the backward pass. sign(0) = 0, as in torch.
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
