"""Check which weights can be trained. Every method calls `check_trainable` before it changes a weight.

gorp trains layers y = W x + b whose W is a parameter of its own: floating point, out_features x in_features, used by no
other layer. Other weights cannot be trained correctly. If a kernel reads W without calling the layer, an adapter has no
effect. If W is quantized or shared with another layer, a delta cannot be added to it. If the layer computes something
else than W x + b, ΔW S = 0 does not protect its output.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gorp.errors import ConfigError, ModelError
from gorp.layers.names import weight_name


READ_BY_KERNELS = ("x_proj", "dt_proj", "out_proj")
"""Layers of a state space model (Mamba) whose weights are read without calling the layer, always or by its kernels."""


@dataclass(frozen=True)
class Obstacle:
    """The reason why a linear layer cannot be trained."""

    kind: str
    """The reason in a few words, the same for all layers of this kind."""
    text: str
    """The reason in full, for one layer."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Weights that `all-linear` leaves out for the same reason."""

    reason: str
    """The reason, in a few words."""
    patterns: tuple[str, ...]
    """Their names, with layer numbers written as `*`."""
    share: float
    """Their share of all the model's weights, in [0, 1]."""


def linear_layers(model: nn.Module) -> dict[str, Obstacle | None]:
    """Return all linear layers by name, in the model's order, with the obstacle to training each, or None.

    A layer that the model registers under two names appears twice.
    """
    owners: dict[int, list[str]] = {}  # all names of each parameter object: more than one if it is shared
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
    """Raise if any of the given weights cannot be trained.

    Args:
        model: The model as loaded, before adapters are added.
        layers: Names of the linear layers whose weights will change; None: every parameter.

    Raises:
        ModelError: The message names the first weight that cannot be trained, and the reason.
    """
    if getattr(model, "is_quantized", False):
        raise ModelError(
            "the model is loaded quantized, but gorp trains floating-point weights only. Load the original model "
            "before quantization; `model.dtype: bfloat16` takes half the memory of float32."
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
                f"`{name}` cannot be trained: {obstacle.text}. Choose other layers in `lora.target_modules` and "
                "`method.full_modules`; `all-linear` selects every layer that can be trained."
            )


def check_rank(model: nn.Module, layers: Sequence[str], rank: int, key: str) -> None:
    """Raise if `rank` exceeds the rank of every targeted weight.

    It may exceed that of some weights: the surplus dimensions of their pairs or cores have no effect.

    Args:
        model: The model, before adapters are added.
        layers: Names of the targeted layers.
        rank: r or k.
        key: YAML key of the rank, for the message.

    Raises:
        ConfigError: The message gives the largest possible rank.
    """
    shapes = {name: tuple(model.get_parameter(weight_name(name)).shape) for name in layers}
    if not shapes:
        return
    largest = max(shapes, key=lambda name: min(shapes[name]))
    m, n = shapes[largest]
    if rank > min(m, n):
        raise ConfigError(
            f"{key} is {rank}, but no targeted weight has a rank above {min(m, n)} (`{largest}` is {m} x {n}). "
            f"Set it to a value from 1 to {min(m, n)}."
        )


def left_out(model: nn.Module) -> list[LeftOut]:
    """Return the weights of 2 or more dimensions that `all-linear` leaves out, by reason, largest share first.

    Embeddings and the output head are not included.
    """
    linear = linear_layers(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    sizes: dict[str, int] = {}
    patterns: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".")
        layer, obstacle = model.get_submodule(owner), linear.get(owner)
        trainable = own == "weight" and owner in linear and obstacle is None
        if parameter.dim() < 2 or trainable or layer is head or isinstance(layer, nn.Embedding):
            continue
        reason = obstacle.kind if obstacle else _kind_of(layer, parameter)
        sizes[reason] = sizes.get(reason, 0) + parameter.numel()
        pattern = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        if pattern not in patterns.setdefault(reason, []):
            patterns[reason].append(pattern)
    total = sum(parameter.numel() for parameter in model.parameters())
    groups = [LeftOut(reason=r, patterns=tuple(patterns[r]), share=size / total) for r, size in sizes.items()]
    return sorted(groups, key=lambda group: -group.share)


def _obstacle(layer: nn.Linear, parent: nn.Module, child: str, others: list[str]) -> Obstacle | None:
    """Return what prevents `layer` from being trained.

    Args:
        layer: A linear layer.
        parent: The module that contains it.
        child: Its name in `parent`.
        others: Other names of parameters that are the same object as its weight.
    """
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
    """Return whether a layer with its own forward method (Falcon's) computes W x + b, by a trial on two rows."""
    weight = layer.weight
    x = torch.linspace(-1, 1, 2 * layer.in_features, dtype=weight.dtype, device=weight.device).view(2, -1)
    try:
        y = layer(x)
    except Exception:  # the layer takes other arguments than one tensor of rows
        return False
    expected = nn.functional.linear(x, weight, layer.bias)
    if not isinstance(y, Tensor) or y.shape != expected.shape:
        return False
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 0.03
    # A meta tensor has no values, so only the shape can be checked.
    return weight.is_meta or bool((y - expected).abs().max() <= tolerance * expected.abs().max())


def _quantized(weight: Tensor) -> str:
    dtype = str(weight.dtype).removeprefix("torch.")
    return f"its weight is quantized ({dtype}). Load the original model before quantization"


def _kind_of(layer: nn.Module, parameter: Tensor) -> str:
    """Return in a few words what kind of layer has this parameter."""
    kind = type(layer).__name__
    if isinstance(layer, nn.modules.conv._ConvNd):
        return "convolution"
    if kind == "Conv1D":
        return "Conv1D"
    return "experts in one tensor" if parameter.dim() == 3 and "xpert" in kind else f"in `{kind}`"
