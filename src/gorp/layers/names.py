"""Convert between names of layers and of their weights: the layer `encoder.q` has the weight `encoder.q.weight`.

Deltas, bases and adapters are stored under the name of the weight in the base model's `state_dict`. Patterns, `resolve`
and PEFT use names of layers.
"""

from collections.abc import Iterable

from torch import nn


SUFFIX = ".weight"


def weight_name(layer: str) -> str:
    """Return the name of a layer's weight."""
    return layer + SUFFIX


def layer_name(weight: str) -> str:
    """Return the name of the layer to which a weight belongs."""
    return weight.removesuffix(SUFFIX)


def layers_of(model: nn.Module, weights: Iterable[str]) -> dict[str, nn.Module]:
    """Return the layers of the named weights in their current form, wrapped or not, by the names of the weights."""
    return {name: model.get_submodule(layer_name(name)) for name in weights}
