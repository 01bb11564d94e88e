"""Base weights W₀ of all trained parameters, and the working weights computed from them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from gorp.errors import ModelError, nearest
from gorp.weights.delta import WeightDelta


BLOCK = {"cpu": 2**22, "cuda": 2**25}
"""Entries of a weight that are summed at a time, so that no second matrix of its size is allocated: few large
operations on a GPU."""


class BaseWeights:
    """W₀ of each trained parameter, by its name in the base model's `state_dict`.

    Between tasks, working weights are round(W₀ + delta). They are always computed from W₀ and the delta, never by
    adding to the current weight, so a resumed run, an older version and an uninterrupted run have the same bits. W₀ is
    kept in main memory, whatever the device of the model.

    Args:
        model: The base model as loaded, before adapters are added.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self._base: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def is_plain(self, model: nn.Module) -> bool:
        """Return whether `model` has its original parameters under their original names: no layer is wrapped."""
        now = dict(model.named_parameters())
        return now.keys() == self._parameters.keys() and all(now[n] is p for n, p in self._parameters.items())

    def parameter(self, name: str) -> nn.Parameter:
        """Return the parameter called `name` in the base model; it stays the same object when its layer is wrapped."""
        if name not in self._parameters:
            raise ModelError(
                f"{name}: this base model has no such parameter.{nearest(name, self._parameters)} "
                "Was the delta or the memory made for another model?"
            )
        return self._parameters[name]

    def sha256(self) -> str:
        """Return a digest of the base model: name, dtype, shape and W₀ of every parameter."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self._parameters.items()):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            original = self._base.get(name, parameter).detach()
            for rows in _blocks(original) if original.dim() else (...,):
                digest.update(original[rows].cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def copies(self) -> list[Tensor]:
        """W₀ of every parameter touched so far, in main memory."""
        return list(self._base.values())

    def base(self, name: str) -> Tensor:
        """Return W₀ of `name`. The first call copies the parameter, so it must come before the parameter changes."""
        if name not in self._base:
            parameter = self.parameter(name).detach()
            self._base[name] = parameter.cpu().pin_memory() if parameter.is_cuda else parameter.clone()
        return self._base[name]

    @torch.no_grad()
    def load(self, deltas: Mapping[str, WeightDelta]) -> None:
        """Set the model's weights to round(W₀ + `deltas`); every trained weight without a delta is reset to W₀."""
        for name in set(self._base) - set(deltas):
            self.parameter(name).copy_(self._base[name])
        for name, delta in deltas.items():
            self.set(name, [delta])

    @torch.no_grad()
    def set(self, name: str, deltas: Sequence[WeightDelta]) -> None:
        """Set one weight to round(W₀ + Σ deltas), summed in float32 (float64 in a float64 model)."""
        parameter = self.parameter(name)
        for delta in deltas:
            if delta.shape != parameter.shape:
                raise ModelError(
                    f"{name}: the delta has shape {tuple(delta.shape)}, the base model's weight "
                    f"{tuple(parameter.shape)}. Was it made for another model?"
                )
        deltas = [delta.factors_to(parameter.device) for delta in deltas]  # once, not for each block of rows
        for rows in _blocks(parameter):
            parameter[rows] = self._rounded(name, deltas, rows)

    @torch.no_grad()
    def served_leak(self, name: str, before: WeightDelta, after: WeightDelta, basis: Tensor) -> float:
        """Return ‖D S‖ / ‖D‖, the leak of served weights: D = round(W₀ + `after`) - round(W₀ + `before`); 0 if D = 0.

        In a bfloat16 model, D also contains the rounding errors of the two sums, which are not orthogonal to S. D is
        computed in blocks of rows, so that no second weight is allocated.

        Args:
            name: Name of a matrix, m x n.
            before: Delta of the weight before the task.
            after: Delta of the weight after the task.
            basis: S, n x s, on the device of the weight, float32 or wider.
        """
        total = along_s = basis.new_zeros(())  # ‖D‖² and ‖D S‖²
        for rows in _blocks(self.parameter(name)):
            old, new = (self._rounded(name, [delta], rows).to(basis) for delta in (before, after))
            change = new - old  # rows x n
            total = total + change.square().sum()
            along_s = along_s + (change @ basis).square().sum()  # (rows, n) @ (n, s)
        return (along_s / total).sqrt().item() if total > 0 else 0.0

    def _rounded(self, name: str, deltas: Sequence[WeightDelta], rows: slice) -> Tensor:
        """Return rows of round(W₀ + Σ deltas), in the dtype and on the device of the parameter."""
        parameter = self.parameter(name)
        wide = torch.promote_types(parameter.dtype, torch.float32)
        total = self.base(name)[rows].to(parameter.device, wide, copy=True, non_blocking=True)
        for delta in deltas:
            delta.add_to(total, rows)
        return total.to(parameter.dtype)

    @torch.no_grad()
    def fold(self, name: str, left: Tensor, right: Tensor, deltas: Sequence[WeightDelta]) -> None:
        """Add `left` `right`ᵀ to a working weight, which is then W₀ + Σ `deltas`.

        A weight of float32 or wider is updated in place by one rank-k product. A narrower weight is recomputed from W₀
        and the deltas, as by `set`: in place it would lose every fold smaller than its rounding.

        Args:
            name: Name of the weight, m x n.
            left: m x k.
            right: n x k.
            deltas: All deltas of the weight, including this fold.
        """
        parameter = self.parameter(name)
        if parameter.dtype in (torch.float32, torch.float64):
            parameter.addmm_(left.to(parameter.dtype), right.to(parameter.dtype).mT)  # (m, k) @ (k, n)
        else:
            self.set(name, deltas)

    def difference(self, name: str) -> WeightDelta:
        """Return W - W₀ of a parameter that was trained in place, as a dense float32 delta in main memory."""
        return WeightDelta.of(self.parameter(name).detach().cpu().float() - self.base(name).float())


def _blocks(weight: Tensor) -> Iterator[slice]:
    """Yield slices of the first dimension with about `BLOCK` entries each."""
    rows = max(1, BLOCK.get(weight.device.type, BLOCK["cpu"]) // max(1, weight.shape[1:].numel()))
    for start in range(0, weight.shape[0], rows):
        yield slice(start, start + rows)
