"""The base model's own values of every weight that training touches, and the working weights made from them."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from gorp.errors import ModelError, nearest
from gorp.weights.delta import WeightDelta


BLOCK = 2**22
"""Numbers of a weight that are summed at a time: no second matrix of its size is ever made."""


class BaseWeights:
    """W₀ of each touched parameter, by its name in the base model's `state_dict`.

    Between tasks working weights are round(W₀ + delta), computed from the exact parts, never by adding to what is
    there: so a resumed run, a rolled-back version and an unbroken run hold the same bits. W₀ is kept in main memory,
    whatever device the model is on.

    Args:
        model: The base model as loaded, before any adapter is added.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self._base: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def is_plain(self, model: nn.Module) -> bool:
        """Whether the parameters of `model` are those it had at first, by the same names: nothing wraps a layer."""
        now = dict(model.named_parameters())
        return now.keys() == self._parameters.keys() and all(now[n] is p for n, p in self._parameters.items())

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
            parameter = self.parameter(name).detach()
            self._base[name] = parameter.cpu().pin_memory() if parameter.is_cuda else parameter.clone()
        return self._base[name]

    @torch.no_grad()
    def load(self, deltas: Mapping[str, WeightDelta]) -> None:
        """Make the model W₀ + `deltas`: every touched weight that has no delta goes back to W₀."""
        for name in set(self._base) - set(deltas):
            self.parameter(name).copy_(self._base[name])
        for name, delta in deltas.items():
            self.set(name, [delta])

    @torch.no_grad()
    def set(self, name: str, deltas: Sequence[WeightDelta]) -> None:
        """Make one weight round(W₀ + Σ deltas), summed in float32 (float64 in a float64 model)."""
        parameter = self.parameter(name)
        for delta in deltas:
            if delta.shape != parameter.shape:
                raise ModelError(
                    f"{name}: the delta has shape {tuple(delta.shape)}, the base model's weight "
                    f"{tuple(parameter.shape)}. Was it made for another model?"
                )
        for rows in _blocks(parameter.shape):
            parameter[rows] = self._rounded(name, deltas, rows)

    @torch.no_grad()
    def served_leak(self, name: str, before: WeightDelta, after: WeightDelta, basis: Tensor) -> float:
        """The leak of what is served: ‖D S‖ / ‖D‖ with D = round(W₀ + `after`) - round(W₀ + `before`); 0 where D is 0.

        In a bfloat16 model D is the change of the delta and the rounding of two sums, and rounding knows no S. Taken
        from blocks of rows, so that no second weight is held.

        Args:
            name: A matrix, m x n.
            before: What the weight held besides W₀.
            after: What it holds now.
            basis: S, n x s, on the device of the weight, float32 or wider.
        """
        size = acting = basis.new_zeros(())
        for rows in _blocks(self.parameter(name).shape):
            old, new = (self._rounded(name, [delta], rows).to(basis) for delta in (before, after))
            change = new - old  # rows x n
            size, acting = size + change.square().sum(), acting + (change @ basis).square().sum()
        return (acting / size).sqrt().item() if size > 0 else 0.0

    def _rounded(self, name: str, deltas: Sequence[WeightDelta], rows: slice) -> Tensor:
        """Rows of round(W₀ + Σ deltas), in the dtype and on the device of the parameter."""
        parameter = self.parameter(name)
        wide = torch.promote_types(parameter.dtype, torch.float32)
        total = self.base(name)[rows].to(parameter.device, wide, copy=True, non_blocking=True)
        for delta in deltas:
            delta.add_to(total, rows)
        return total.to(parameter.dtype)

    @torch.no_grad()
    def fold(self, name: str, left: Tensor, right: Tensor, deltas: Sequence[WeightDelta]) -> None:
        """Add `left` `right`ᵀ to a working weight that then stands for W₀ + Σ `deltas`.

        In place where the weight is float32 or wider: one rank-k update. A narrower weight is made anew from the exact
        parts, as `set` does: in place it would lose every fold smaller than its rounding.
        """
        parameter = self.parameter(name)
        if parameter.dtype in (torch.float32, torch.float64):
            parameter.addmm_(left.to(parameter.dtype), right.to(parameter.dtype).mT)
        else:
            self.set(name, deltas)

    def difference(self, name: str) -> WeightDelta:
        """W - W₀ of a parameter that was trained in place, dense, float32, in main memory."""
        return WeightDelta.of(self.parameter(name).detach().cpu().float() - self.base(name).float())


def _blocks(shape: torch.Size) -> Iterator[slice]:
    """Slices of the first dimension, of about `BLOCK` numbers each."""
    rows = max(1, BLOCK // max(1, shape[1:].numel()))
    for start in range(0, shape[0], rows):
        yield slice(start, start + rows)
