"""The base model's own values of every weight that training touches, and the working weights made from them."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from gorp.delta import WeightDelta
from gorp.errors import ModelError, nearest


class BaseWeights:
    """W₀ of each touched parameter, by its name in the base model's `state_dict`.

    Working weights are always round(W₀ + delta), computed from the exact parts, never by adding to what is there:
    so a resumed run, a rolled-back version and an unbroken run hold the same bits.

    Args:
        model: The base model as loaded, before any adapter is added.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self._base: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def parameter(self, name: str) -> nn.Parameter:
        """The live parameter called `name`; its identity survives wrapping the layer that owns it."""
        if name not in self._parameters:
            raise ModelError(
                f"{name}: this base model has no such parameter.{nearest(name, self._parameters)} "
                "Was the delta or the memory made for another model?"
            )
        return self._parameters[name]

    def base(self, name: str) -> Tensor:
        """W₀ of `name`; the first call copies it, so it must come before the parameter is changed."""
        if name not in self._base:
            self._base[name] = self.parameter(name).detach().clone()
        return self._base[name]

    @torch.no_grad()
    def load(self, deltas: Mapping[str, WeightDelta]) -> None:
        """Make the model W₀ + `deltas`: every touched weight that has no delta goes back to W₀."""
        for name in set(self._base) - set(deltas):
            self.parameter(name).copy_(self._base[name])
        for name, delta in deltas.items():
            self.set(name, [delta])

    @torch.no_grad()
    def set(self, name: str, deltas: Iterable[WeightDelta]) -> None:
        """Make one weight round(W₀ + Σ deltas)."""
        total = WeightDelta(self.parameter(name).shape)
        for delta in deltas:
            if delta.shape != total.shape:
                raise ModelError(
                    f"{name}: the delta has shape {tuple(delta.shape)}, the base model's weight {tuple(total.shape)}. "
                    "Was it made for another model?"
                )
            total.add(delta)
        self.parameter(name).copy_(total.added_to(self.base(name)))

    def difference(self, name: str) -> WeightDelta:
        """W - W₀ of a parameter that was trained in place, dense, float32."""
        return WeightDelta.of(self.parameter(name).detach().float() - self.base(name).float())
