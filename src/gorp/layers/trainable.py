"""Which weights can be trained, and why the others cannot: the gate that every method passes before it changes any.

gorp trains y = W x + b where W is a parameter of its own: floating point, out_features x in_features, read by no
other layer. Of any other weight something would be lost: the adapter, where a kernel reads W and never calls the layer;
the fold, where W is quantized or another layer reads it too; the equation, where the layer computes something else.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gorp.errors import ConfigError, ModelError
from gorp.layers.names import weight_name


READ_BY_KERNELS = ("x_proj", "dt_proj", "out_proj")
"""Layers of a state space (Mamba) whose weights are read without calling the layer: always, or by its kernels."""


@dataclass(frozen=True)
class Obstacle:
    """Why a linear layer cannot be trained."""

    kind: str
    """In a few words, the same for all layers alike."""
    text: str
    """In full."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Weights that `all-linear` does not reach, all for one reason."""

    reason: str
    """What they are, in a few words."""
    patterns: tuple[str, ...]
    """Their names, layer numbers written as `*`."""
    share: float
    """Of all the model's weights, in [0, 1]."""


def linear_layers(model: nn.Module) -> dict[str, Obstacle | None]:
    """Every linear layer by its name, in the model's order, with what keeps it from being trained; None: nothing.

    A layer that the model holds under two names is there twice.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    named = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, Obstacle | None] = {}
    for name, layer in named.items():
        if isinstance(layer, nn.Linear):
            parent, _, child = name.rpartition(".")
            others = [other for other in owners.get(id(layer.weight), []) if other != weight_name(name)]
            found[name] = _obstacle(layer, named[parent], child, others)
    return found


def check_trainable(model: nn.Module, layers: Sequence[str] | None) -> None:
    """Refuse weights that cannot be trained.

    Args:
        model: As loaded, before any adapter.
        layers: Names of the linear layers whose weights will change; None: every parameter.

    Raises:
        ModelError: It names the first weight that cannot be trained, and the reason.
    """
    if getattr(model, "is_quantized", False):
        raise ModelError(
            "the model is loaded quantized, and gorp changes weights of floating point only. Load the model that it "
            "was quantized from; `model.dtype: bfloat16` takes half the memory of float32."
        )
    if layers is None:
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                raise ModelError(f"`{name}` cannot be trained: {_quantized(parameter)}.")
        return
    known = linear_layers(model)
    for name in layers:
        if name not in known:
            raise ModelError(f"`{name}` cannot be trained: the model has no linear layer of this name.")
        if (obstacle := known[name]) is not None:
            raise ModelError(
                f"`{name}` cannot be trained: {obstacle.text}. Name other layers in `lora.target_modules` and "
                "`method.full_modules`; `all-linear` means all that can be trained."
            )


def check_rank(model: nn.Module, layers: Sequence[str], rank: int, key: str) -> None:
    """Refuse a rank that none of the targeted matrices can have.

    Matrices that are smaller than the largest are allowed: what a pair or a core has beyond their rank changes nothing.

    Raises:
        ConfigError: With the largest rank there can be.
    """
    shapes = {name: tuple(model.get_parameter(weight_name(name)).shape) for name in layers}
    if not shapes:
        return
    largest = max(shapes, key=lambda name: min(shapes[name]))
    m, n = shapes[largest]
    if rank > min(m, n):
        raise ConfigError(
            f"{key} is {rank}, but no targeted weight has a rank above {min(m, n)} (`{largest}` is {m} x {n}). "
            f"Wanted 1 to {min(m, n)}."
        )


def left_out(model: nn.Module) -> list[LeftOut]:
    """The matrices and larger tensors that `all-linear` does not reach, but for embeddings and head; largest first."""
    linear = linear_layers(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    sizes: dict[str, int] = {}
    patterns: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".")
        layer, obstacle = model.get_submodule(owner), linear.get(owner)
        reached = own == "weight" and owner in linear and obstacle is None
        if parameter.dim() < 2 or reached or layer is head or isinstance(layer, nn.Embedding):
            continue
        reason = obstacle.kind if obstacle else _nature(layer, parameter)
        sizes[reason] = sizes.get(reason, 0) + parameter.numel()
        pattern = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        if pattern not in patterns.setdefault(reason, []):
            patterns[reason].append(pattern)
    total = sum(parameter.numel() for parameter in model.parameters())
    groups = [LeftOut(reason=r, patterns=tuple(patterns[r]), share=size / total) for r, size in sizes.items()]
    return sorted(groups, key=lambda group: -group.share)


def _obstacle(layer: nn.Linear, parent: nn.Module, child: str, others: list[str]) -> Obstacle | None:
    weight, kind = layer.weight, type(layer).__name__
    if not isinstance(weight, nn.Parameter):
        return Obstacle("computed", "its weight is computed from others, not a parameter of its own")
    if not weight.is_floating_point():
        return Obstacle("quantized", _quantized(weight))
    if weight.shape != (layer.out_features, layer.in_features):
        wanted = f"({layer.out_features}, {layer.in_features})"
        return Obstacle("packed", f"its weight has shape {tuple(weight.shape)}, not (out, in) = {wanted}")
    if type(layer).forward is not nn.Linear.forward and not _is_linear(layer):
        text = f"it is a `{kind}`, which computes something else than W x + b"
        return Obstacle(f"`{kind}`, which is more than a linear layer", text)
    if others:
        named = f"`{others[0]}`" if len(others) == 1 else f"`{others[0]}` and {len(others) - 1} more"
        return Obstacle("shared by several layers", f"it shares its weight with {named}, which would change too")
    if child in READ_BY_KERNELS and hasattr(parent, "A_log") and hasattr(parent, "D"):
        text = "the kernels of its state space read the weight without calling the layer"
        return Obstacle("read by the kernels of a state space", text)
    return None


@torch.no_grad()
def _is_linear(layer: nn.Linear) -> bool:
    """Whether a layer with a forward pass of its own (Falcon's) computes W x + b; tried on two rows."""
    weight = layer.weight
    x = torch.linspace(-1, 1, 2 * layer.in_features, dtype=weight.dtype, device=weight.device).view(2, -1)
    try:
        y = layer(x)
    except Exception:  # it wants something else than rows of numbers
        return False
    wanted = nn.functional.linear(x, weight, layer.bias)
    if not isinstance(y, Tensor) or y.shape != wanted.shape:
        return False
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 0.03
    return weight.is_meta or bool((y - wanted).abs().max() <= tolerance * wanted.abs().max())


def _quantized(weight: Tensor) -> str:
    kind = str(weight.dtype).removeprefix("torch.")
    return f"its weight is quantized ({kind}). Load the model that it was quantized from"


def _nature(layer: nn.Module, parameter: Tensor) -> str:
    kind = type(layer).__name__
    if isinstance(layer, nn.modules.conv._ConvNd):
        return "convolution"
    if kind == "Conv1D":
        return "Conv1D"
    return "experts in one tensor" if parameter.dim() == 3 and "xpert" in kind else f"in `{kind}`"
