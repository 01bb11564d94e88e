"""LoRA factors on named layers, by PEFT, without changing the class of the model. arXiv:2106.09685."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from gorp.layers.low_rank import replace
from gorp.layers.names import weight_name
from gorp.ranges import BELOW_ONE, BETWEEN_TASKS, POSITIVE, WIDEST, Range, check_ranges
from gorp.weights.delta import WeightDelta


ADAPTER = "gorp"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The `lora:` block; the names are those of `peft.LoraConfig`."""

    r: Annotated[int, Range(1, WIDEST)] = 8
    """Rows of A."""
    lora_alpha: Annotated[float, POSITIVE] = 32.0
    """The factors are scaled by s = lora_alpha / r."""
    lora_dropout: Annotated[float, BELOW_ONE, BETWEEN_TASKS] = 0.0
    """Share of the inputs of A dropped in training."""
    target_modules: tuple[str, ...] | str = "auto"
    """Which layers: "auto", "all-linear", or patterns (`gorp.layers.targets.resolve`)."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers before a model is loaded."""
        check_ranges(self, "lora.")


@dataclass(frozen=True, kw_only=True)
class LoraPair:
    """The factors of one weight: W x + s B A x."""

    down: nn.Parameter
    """A, r x n, float32 (float64 in a float64 model)."""
    up: nn.Parameter
    """B, m x r; zero at birth, so that a new pair changes nothing."""
    scale: float
    """s = lora_alpha / r."""

    def delta(self) -> WeightDelta:
        """s B A as a factored delta: exact, no m x n product."""
        delta = WeightDelta(torch.Size([self.up.shape[0], self.down.shape[1]]))
        delta.append(self.scale * self.up.detach(), self.down.detach().mT)
        return delta

    @torch.no_grad()
    def load(self, down: Tensor, up: Tensor) -> None:
        """Set both factors."""
        self.down.copy_(down)
        self.up.copy_(up)


def add_lora(model: nn.Module, layers: list[str], settings: LoraSettings) -> dict[str, LoraPair]:
    """A fresh pair on each of `layers`; returns the pairs by the name of their weight in the base model.

    All weights of the model are frozen. A is PEFT's default (Kaiming uniform), so it depends on torch's random state.

    PEFT sees the layers alone, in a container of ours, not the model: in a model with fused experts it would rewrite
    the names of the layers beside them (shared experts, dense layers).
    """
    model.requires_grad_(False)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.lora_dropout,
        target_modules=r"\d+",
    )
    held = nn.ModuleDict({str(index): model.get_submodule(name) for index, name in enumerate(layers)})
    inject_adapter_in_model(config, held, adapter_name=ADAPTER)
    pairs = {}
    for name, layer in zip(layers, held.values(), strict=True):
        assert isinstance(layer, LoraLayer)
        replace(model, name, layer)
        linears: list[Any] = [layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]]
        for factor in linears:
            factor.to(torch.promote_types(factor.weight.dtype, torch.float32))  # PEFT took the weight's dtype
        down, up = (factor.weight for factor in linears)
        pairs[weight_name(name)] = LoraPair(down=down, up=up, scale=layer.scaling[ADAPTER])
    return pairs


def remove_lora(model: nn.Module) -> None:
    """Put back the layers that `add_lora` wrapped, as they were: nothing is merged."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            replace(model, name, layer.get_base_layer())
