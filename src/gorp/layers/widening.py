"""Weights in float32 for as long as they train, whatever the model's dtype is between tasks.

A step of 1e-5 on a weight of 0.02 is a tenth of bfloat16's rounding, and in place almost none of the entries would
move. A widened parameter stays the same object, in the model and in the optimizer.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gorp.core.linalg import coarsest


class Widened:
    """Parameters that are float32 until `narrow`; those of float32 and float64 stay as they are.

    Args:
        parameters: To be widened in place, now.
    """

    def __init__(self, parameters: Iterable[nn.Parameter] = ()) -> None:
        self._dtypes = {parameter: parameter.dtype for parameter in parameters}
        for parameter, dtype in self._dtypes.items():
            parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32))

    def narrow(self) -> None:
        """Give every parameter its own dtype again, and take its gradient away."""
        for parameter, dtype in self._dtypes.items():
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)
        self._dtypes = {}


class WidenedLayer:
    """A linear layer with its weight and bias in float32, in a model whose other parameters keep their dtype.

    Under autocast, which chooses the dtype of the product itself, the layer runs as it is. Otherwise its input is
    widened, the product is one of float32, and the output has the dtype that it had before.

    Args:
        layer: Not wrapped.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.made_in: torch.dtype | None = None
        """The dtype of the last forward product, and so of the gradient's; None before the first."""
        self._dtype = layer.weight.dtype
        self._widened = Widened(layer.parameters())
        self._handles = [
            layer.register_forward_pre_hook(self._enter, with_kwargs=True),
            layer.register_forward_hook(self._leave),
        ]

    @property
    def is_wider(self) -> bool:
        """Whether the weight was narrower before."""
        return torch.promote_types(self._dtype, torch.float32) != self._dtype

    def narrow(self) -> None:
        """Leave the layer as it was; the value of its weight is rounded."""
        for handle in self._handles:
            handle.remove()
        self._widened.narrow()

    def _enter(
        self, layer: nn.Linear, args: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]] | None:
        if not self.is_wider or torch.is_autocast_enabled(layer.weight.device.type):
            return None
        wide = layer.weight.dtype
        return tuple(x.to(wide) for x in args), {name: x.to(wide) for name, x in named.items()}

    def _leave(self, layer: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        self.made_in = output.dtype
        if not self.is_wider or torch.is_autocast_enabled(layer.weight.device.type):
            return None
        return output.to(self._dtype)


def made_in(layers: Iterable[WidenedLayer]) -> torch.dtype | None:
    """The coarsest dtype of the layers' products: one for all, so that ranks that used different layers agree."""
    known = [layer.made_in for layer in layers if layer.made_in is not None]
    return coarsest(*known) if known else None
