"""A linear layer and its weight, by name: the layer `encoder.q` has the weight `encoder.q.weight`.

Deltas, bases and adapters are kept under the name of the weight in the base model's `state_dict`; patterns, `resolve`
and PEFT name layers.
"""

from collections.abc import Iterable

from torch import nn


SUFFIX = ".weight"


def weight_name(layer: str) -> str:
    """The name of a layer's weight."""
    return layer + SUFFIX


def layer_name(weight: str) -> str:
    """The name of the layer that a weight belongs to."""
    return weight.removesuffix(SUFFIX)


def layers_of(model: nn.Module, weights: Iterable[str]) -> dict[str, nn.Module]:
    """The layers in `model` by the names of their weights, as they are now: wrapped or not."""
    return {name: model.get_submodule(layer_name(name)) for name in weights}
