"""The full-rank branch of one task: cores on their layers, frames that follow the gradient, folds that keep W exact."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gorp.core.distributed import num_ranks
from gorp.core.frame import Frame, Seen, sketched_frames
from gorp.core.moments import Rule, kept_by, reset_moments, rotate_moments
from gorp.layers.low_rank import LowRankUpdate, wrap
from gorp.layers.names import weight_name
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta, pack_deltas, unpack_deltas


class FullRankBranch:
    """W x + U C Vᵀ x on each named layer, and what the task has folded into W so far.

    At a refresh U C Vᵀ goes into W and into the task's `changes`, C becomes zero, U and V are those of the gradient at
    hand, and the optimizer's moments of C follow. A float32 weight takes a fold in place; a narrower one is made anew
    from W₀ and all changes, because it would lose small folds.

    Args:
        model: The model, its layers not wrapped by this class.
        names: Layers to train.
        weights: W₀ of the model.
        earlier: What W holds besides W₀ when the task starts, by weight.
        rank: k.
        oversampling: See `sketched_frames`.
        power_steps: See `sketched_frames`.
        moments: What happens to an optimizer's moments of C: carried into the new frame, left, or set to zero. The
            optimizer must be one that `gorp.core.moments.check_moments` takes.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        weights: BaseWeights,
        earlier: Mapping[str, WeightDelta],
        *,
        rank: int,
        oversampling: int,
        power_steps: int,
        moments: Rule,
    ) -> None:
        self.layers: dict[str, LowRankUpdate] = {
            weight_name(name): layer for name, layer in wrap(model, list(names), rank=rank).items()
        }
        """The wrapped layers by the name of their weight."""
        for name in self.layers:
            weights.base(name)
        self.changes = {name: WeightDelta(weights.parameter(name).shape) for name in self.layers}
        """What this task has folded, by weight."""
        self._weights, self._earlier = weights, earlier
        self._rank, self._oversampling, self._power_steps = rank, oversampling, power_steps
        self._moments = moments

    @torch.no_grad()
    def refresh(self, seen: Mapping[str, Seen], optimizer: torch.optim.Optimizer) -> None:
        """Of each layer: fold C, take the frame of the gradient at hand, and give C its gradient there.

        Args:
            seen: By weight: (X, D) of this step, S that the frame's V is orthogonal to, and random rows R.
            optimizer: Holds the moments of C.
        """
        frames = sketched_frames(
            list(seen.values()), rank=self._rank, oversampling=self._oversampling, power_steps=self._power_steps
        )
        for name, new in zip(seen, frames, strict=True):
            if new is not None:  # a gradient that is not finite has no frame: the old one stays
                self._turn(name, new, optimizer)

    def _turn(self, name: str, new: Frame, optimizer: torch.optim.Optimizer) -> None:
        layer = self.layers[name]
        old = Frame(left=layer.left.clone(), right=layer.right.clone())
        left, right = layer.fold(new)
        self.changes[name].append(left, right)
        earlier = [self._earlier[name]] if name in self._earlier else []
        self._weights.fold(name, left, right, [*earlier, self.changes[name]])
        assert layer.core.grad is not None and new.sigma is not None
        # G' = Uᵀ G V = Σ, averaged over ranks. Computed as a product it would have rounding beside its diagonal, and
        # Adam would blow that up to full steps.
        layer.core.grad.copy_((new.sigma / num_ranks()).diag())
        state, kept = optimizer.state.get(layer.core, {}), kept_by(type(optimizer))
        if self._moments == "rotate" and kept is not None:
            rotate_moments(state, kept, old, new)
        elif self._moments == "reset" and kept is not None:
            reset_moments(state, kept)

    def finish(self) -> dict[str, WeightDelta]:
        """Fold what the cores still hold; return the whole change of each weight."""
        for name, layer in self.layers.items():
            self.changes[name].append(*layer.fold())
        return self.changes

    def state_dict(self) -> dict[str, Tensor]:
        """Frames, changes, and the working weights, which hold the folds in their order of rounding."""
        state = {}
        for name, layer in self.layers.items():
            state |= {f"{name}::left": layer.left, f"{name}::right": layer.right}
            state[f"{name}::working"] = self._weights.parameter(name).detach()
        return state | {f"change/{key}": tensor for key, tensor in pack_deltas(self.changes).items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        saved = {key.removeprefix("change/"): x for key, x in state.items() if key.startswith("change/")}
        changes = unpack_deltas(saved)
        for name, layer in self.layers.items():
            layer.left.copy_(state[f"{name}::left"])
            layer.right.copy_(state[f"{name}::right"])
            self._weights.parameter(name).copy_(state[f"{name}::working"])
            self.changes[name] = changes[name].to(layer.left.device)
