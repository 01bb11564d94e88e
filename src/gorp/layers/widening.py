"""Keep weights in float32 while they are trained, whatever the model's dtype is between tasks.

A step of 1e-5 on a weight of 0.02 is a tenth of bfloat16's rounding; applied in place it would change almost no entry.
A widened parameter stays the same object, for the model and for the optimizer.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gorp.core.linalg import coarsest


class Widened:
    """Parameters converted to float32 until `narrow` is called; float32 and float64 parameters do not change.

    Args:
        parameters: The parameters to convert, in place.
    """

    def __init__(self, parameters: Iterable[nn.Parameter] = ()) -> None:
        self._dtypes = {parameter: parameter.dtype for parameter in parameters}
        for parameter, dtype in self._dtypes.items():
            # Assigning to `data` keeps the Parameter object, which an optimizer and the model refer to.
            parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32))

    def narrow(self) -> None:
        """Convert every parameter back to its original dtype and delete its gradient."""
        for parameter, dtype in self._dtypes.items():
            parameter.grad = None  # its dtype would no longer match
            parameter.data = parameter.data.to(dtype)
        self._dtypes = {}


class WidenedLayer:
    """A linear layer with weight and bias in float32, in a model whose other parameters keep their dtype.

    Autocast chooses the dtype of the product itself, so the layer then runs without conversions. Otherwise the input is
    converted to float32, the product runs in float32, and the output is converted to the original dtype.

    Args:
        layer: A linear layer that is not wrapped.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.compute_dtype: torch.dtype | None = None
        """Dtype of the last forward product, and so of the gradient's product; None before the first forward pass."""
        self._dtype = layer.weight.dtype
        self._widened = Widened(layer.parameters())
        self._handles = [
            layer.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            layer.register_forward_hook(self._after_forward),
        ]

    @property
    def is_wider(self) -> bool:
        """Whether the weight now has a wider dtype than originally."""
        return torch.promote_types(self._dtype, torch.float32) != self._dtype

    def narrow(self) -> None:
        """Remove the hooks and convert the weight back to its original dtype, which rounds its values."""
        for handle in self._handles:
            handle.remove()
        self._widened.narrow()

    def _before_forward(
        self, layer: nn.Linear, args: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]] | None:
        if not self.is_wider or torch.is_autocast_enabled(layer.weight.device.type):
            return None
        wide = layer.weight.dtype
        return tuple(x.to(wide) for x in args), {name: x.to(wide) for name, x in named.items()}

    def _after_forward(self, layer: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        self.compute_dtype = output.dtype  # before conversion: the dtype in which the product was computed
        if not self.is_wider or torch.is_autocast_enabled(layer.weight.device.type):
            return None
        return output.to(self._dtype)


def compute_dtype(layers: Iterable[WidenedLayer]) -> torch.dtype | None:
    """Return the coarsest dtype of all layers' products; None if none has run.

    One dtype for all layers, so that ranks that used different layers agree.
    """
    dtypes = [layer.compute_dtype for layer in layers if layer.compute_dtype is not None]
    return coarsest(*dtypes) if dtypes else None
