"""Add LoRA pairs to named layers with PEFT, without changing the class of the model. arXiv:2106.09685."""

from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from gorp.layers.low_rank import replace
from gorp.layers.names import weight_name
from gorp.ranges import BELOW_ONE, BETWEEN_TASKS, POSITIVE, WIDEST, Range, check_ranges
from gorp.weights.delta import WeightDelta


ADAPTER = "gorp"
"""Name of the adapter in PEFT's layers."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Options of the `lora:` block, named as in `peft.LoraConfig`.

    Example:
        >>> from gorp import LoraSettings
        >>> settings = LoraSettings(r=16, lora_alpha=32.0, target_modules=("q_proj", "v_proj"))
        >>> settings.lora_alpha / settings.r  # the scale s
        2.0
    """

    r: Annotated[int, Range(1, WIDEST)] = 8
    """Rank: number of rows of A."""
    lora_alpha: Annotated[float, POSITIVE] = 32.0
    """B A is scaled by s = lora_alpha / r."""
    lora_dropout: Annotated[float, BELOW_ONE, BETWEEN_TASKS] = 0.0
    """Dropout probability of the inputs of A during training."""
    target_modules: tuple[str, ...] | str | None = None
    """Layers that get a pair: "all-linear", "auto", "none", or patterns (`gorp.layers.targets.resolve`). None is
    "all-linear", and "auto" in gorp's `mode: paper`."""

    def __post_init__(self) -> None:
        """Check the ranges of all numbers, before a model is loaded."""
        check_ranges(self, "lora.")

    def wrappers(self, model: nn.Module, layers: list[str]) -> list[LoraLayer]:
        """Return PEFT's wrapper with a new pair for each of the named layers; they are not in the model yet."""
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=self.lora_dropout,
            target_modules=r"\d+",  # the names of the layers in `container`
        )
        # PEFT gets a container with these layers only, not the model: in a model with fused experts it would put the
        # pairs of neighbouring layers (shared experts, dense layers) on the fused experts.
        container = nn.ModuleDict({str(index): model.get_submodule(name) for index, name in enumerate(layers)})
        inject_adapter_in_model(config, container, adapter_name=ADAPTER)
        return cast(list[LoraLayer], list(container.values()))

    @property
    def targets(self) -> tuple[str, ...] | str:
        """`target_modules`, its default filled in; a method with another default sets `target_modules` first."""
        return "all-linear" if self.target_modules is None else self.target_modules


@dataclass(frozen=True, kw_only=True)
class LoraPair:
    """LoRA factors of one weight: the layer computes W x + s B A x."""

    down: nn.Parameter
    """A, r x n, float32 (float64 in a float64 model)."""
    up: nn.Parameter
    """B, m x r, same dtype; zero when created, so that a new pair does not change the output."""
    scale: float
    """s = lora_alpha / r."""

    def delta(self) -> WeightDelta:
        """Return s B A as a factored delta, without computing the m x n product."""
        return WeightDelta.of_factors(self.scale * self.up.detach(), self.down.detach().mT)  # s B, m x r; Aᵀ, n x r

    @torch.no_grad()
    def load(self, down: Tensor, up: Tensor) -> None:
        """Copy values into both factors."""
        self.down.copy_(down)
        self.up.copy_(up)


def add_lora(model: nn.Module, layers: list[str], settings: LoraSettings) -> dict[str, LoraPair]:
    """Put a new pair on each of `layers` and freeze all other weights of the model.

    A has PEFT's default initialization (Kaiming uniform), so it depends on torch's random state.

    Args:
        model: The base model.
        layers: Names of linear layers.
        settings: Rank, scale and dropout.

    Returns:
        The pairs by the name of their weight in the base model.
    """
    model.requires_grad_(False)
    pairs = {}
    for name, layer in zip(layers, settings.wrappers(model, layers), strict=True):
        (adapter,) = layer.lora_A
        replace(model, name, cast(nn.Module, layer))
        linears: list[Any] = [layer.lora_A[adapter], layer.lora_B[adapter]]
        for factor in linears:
            # PEFT created it in the weight's dtype, or the user's script has frozen it.
            factor.to(torch.promote_types(factor.weight.dtype, torch.float32)).requires_grad_(True)
        down, up = (factor.weight for factor in linears)
        pairs[weight_name(name)] = LoraPair(down=down, up=up, scale=layer.scaling[adapter])
    return pairs


def remove_lora(model: nn.Module) -> None:
    """Restore the layers that `add_lora` wrapped, without merging the pairs into their weights."""
    for name, layer in list(model.named_modules()):  # a list, because the loop replaces modules
        if isinstance(layer, LoraLayer):
            replace(model, name, layer.get_base_layer())
