"""The one operation of a layer with a LoRA pair and a core, on a GPU, against the dense weight in float64."""

import pytest
import torch
from torch import nn

from gorp.core.frame import Frame
from gorp.layers.lora import LoraSettings, add_lora
from gorp.layers.low_rank import linear_of, wrap
from tests.matrices import basis


LARGEST_ERROR = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""‖found - wanted‖ / ‖wanted‖. Matrix units that round float32 to 10 bits (TF32) would make about 3e-4 of it."""


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [*((dtype, False) for dtype in LARGEST_ERROR), (torch.float32, True), (torch.bfloat16, True)]
)
def test_answers_and_gradients_are_those_of_the_dense_weight(dtype, autocast, lora, either):
    m, n = 160, 96
    model = nn.Sequential(nn.Linear(n, m)).to(either, dtype).requires_grad_(False)
    pair = add_lora(model, ["0"], LoraSettings(r=8, target_modules=["0"]))["0.weight"] if lora else None
    layer = wrap(model, ["0"], rank=8)["0"]
    layer.fold(Frame(left=basis(m, 8), right=basis(n, 8)))
    trained = [layer.core, *([pair.down, pair.up] if pair else [])]
    for parameter in trained:
        parameter.data.normal_(0, 0.3)
    x = torch.randn(4, 33, n, device=either, dtype=dtype, requires_grad=True)
    mix = torch.randn(4, 33, m, device=either, dtype=dtype)
    with torch.autocast(either.type, dtype=torch.bfloat16, enabled=autocast):
        y = layer(x)
    gradients = torch.autograd.grad((y.to(dtype) * mix).sum(), [x, *trained])

    exact = [p.detach().double().requires_grad_(True) for p in (x, *trained)]
    weight = linear_of(layer).weight.double() + layer.left.double() @ exact[1] @ layer.right.double().mT
    if pair is not None:
        weight = weight + pair.scale * exact[3] @ exact[2]  # s B A: (m, r) @ (r, n)
    wanted = exact[0] @ weight.mT + linear_of(layer).bias.double()
    wanted_gradients = torch.autograd.grad((wanted * mix.double()).sum(), exact)
    most = LARGEST_ERROR[torch.bfloat16 if autocast else dtype]
    for found, right in zip((y, *gradients), (wanted, *wanted_gradients), strict=True):
        assert (found.double() - right).norm() <= most * right.norm()
