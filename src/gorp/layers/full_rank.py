"""The full-rank branch of one task: cores on layers, refreshes of their frames, and folds of cores into the weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, _foreach_copy_, _foreach_zero_, nn  # pyright: ignore[reportPrivateImportUsage]

from gorp.core.distributed import num_ranks
from gorp.core.frame import Frame
from gorp.core.moments import Rule, reset_moments, rotate_moments, state_keys_of
from gorp.core.sketched import FrameInputs, sketched_frames
from gorp.layers.low_rank import LowRankUpdate, wrap
from gorp.layers.names import weight_name
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta, pack_deltas, unpack_deltas


class FullRankBranch:
    """Computes W x + U C Vᵀ x on each named layer, and keeps the changes that the task has folded into W.

    At a refresh, U C Vᵀ is added to W and to the task's `changes`, C becomes zero, U and V become the frame of the
    current gradient, and the optimizer's moments of C are converted to that frame. A float32 weight is updated in place
    by a fold. A narrower weight is recomputed from W₀ and all changes, because small folds would be lost in rounding.

    Args:
        model: The model; its layers must not be wrapped yet.
        names: Names of the layers to train.
        weights: W₀ of the model.
        earlier: Delta of each weight when the task starts, by weight.
        rank: k.
        oversampling: See `sketched_frames`.
        power_steps: See `sketched_frames`.
        moments: Treatment of the optimizer's moments of C at a refresh: "rotate" converts them to the new frame,
            "keep" leaves them, "reset" sets them to zero. `gorp.core.moments.check_moments` must accept the optimizer.
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
            weights.base(name)  # copies W₀ before the first fold changes the weight
        self.changes = {name: WeightDelta(weights.parameter(name).shape) for name in self.layers}
        """Delta folded by this task, by weight."""
        on_gpu = [name for name in earlier if weights.parameter(name).is_cuda]
        self._weights, self._earlier = weights, dict(earlier) | {name: earlier[name].pinned() for name in on_gpu}
        self._rank, self._oversampling, self._power_steps = rank, oversampling, power_steps
        self._moments = moments

    @torch.no_grad()
    def refresh(self, seen: Mapping[str, FrameInputs], optimizer: torch.optim.Optimizer) -> None:
        """Refresh each layer: fold C, switch to the frame of the current gradient, and set C's gradient in that frame.

        Args:
            seen: By weight: (X, D) of this step, S to which the new V is orthogonal, and random rows R of the gradient.
            optimizer: The task's optimizer, which holds the moments of C.
        """
        frames = sketched_frames(
            list(seen.values()), rank=self._rank, oversampling=self._oversampling, power_steps=self._power_steps
        )
        groups: dict[torch.Size, dict[str, Frame]] = {}
        for name, new in zip(seen, frames, strict=True):
            if new is not None:  # a gradient that is not finite has no frame: keep the old one
                groups.setdefault(self.changes[name].shape, {})[name] = new
        for group in groups.values():
            self._change_frames(group, optimizer)

    def _change_frames(self, frames: Mapping[str, Frame], optimizer: torch.optim.Optimizer) -> None:
        """Fold the cores of weights of one shape and switch to their new frames, all in the same few operations."""
        layers = [self.layers[name] for name in frames]
        cores: list[Tensor] = [layer.core for layer in layers]
        old = Frame(left=torch.stack([x.left for x in layers]), right=torch.stack([x.right for x in layers]))
        new = Frame(
            left=torch.stack([f.left for f in frames.values()]), right=torch.stack([f.right for f in frames.values()])
        )
        folded = old.left @ torch.stack(cores)  # U C: (L, m, k) @ (L, k, k)
        states, kept = [optimizer.state.get(core, {}) for core in cores], state_keys_of(type(optimizer))
        if self._moments == "rotate" and kept is not None:
            rotate_moments(states, kept, old, new)
        elif self._moments == "reset" and kept is not None:
            for state in states:
                reset_moments(state, kept)
        _foreach_zero_(cores)
        _foreach_copy_([x.left for x in layers] + [x.right for x in layers], [*new.left, *new.right])
        # G' = Uᵀ G V = Σ, averaged over ranks. Computed as a product it would have rounding errors off the diagonal,
        # and Adam would make full steps of them.
        sigma = torch.stack([f.sigma for f in frames.values() if f.sigma is not None]) / num_ranks()
        _foreach_copy_([core.grad for core in cores if core.grad is not None], list(sigma.diag_embed()))
        for name, left, right in zip(frames, folded, old.right, strict=True):
            self.changes[name].append(left, right)
            earlier = [self._earlier[name]] if name in self._earlier else []
            self._weights.fold(name, left, right, [*earlier, self.changes[name]])

    def finish(self) -> dict[str, WeightDelta]:
        """Fold the cores a last time; return the task's whole change of each weight."""
        for name, layer in self.layers.items():
            self.changes[name].append(*layer.fold())
        return self.changes

    def state_dict(self) -> dict[str, Tensor]:
        """Return frames, changes, and working weights, whose last bits depend on the order of their folds."""
        state = {}
        for name, layer in self.layers.items():
            state |= {f"{name}::left": layer.left, f"{name}::right": layer.right}
            state[f"{name}::working"] = self._weights.parameter(name).detach()
        return state | {f"change/{key}": tensor for key, tensor in pack_deltas(self.changes).items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a `state_dict`."""
        packed = {key.removeprefix("change/"): x for key, x in state.items() if key.startswith("change/")}
        changes = unpack_deltas(packed)
        for name, layer in self.layers.items():
            # The core is a trainable parameter, which the checkpoint stores separately.
            layer.left.copy_(state[f"{name}::left"])
            layer.right.copy_(state[f"{name}::right"])
            self._weights.parameter(name).copy_(state[f"{name}::working"])
            self.changes[name] = changes[name].to(layer.left.device)
