"""Counting operations, bytes alive and bytes saved: against hand counts and torch's own counter."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gorp.estimate import Device, Ledger, SavedTensors


def test_a_product_by_hand():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    device = Device(name="slow", flops=10.0, bandwidth=1e9, latency=0.0)
    with Ledger(device) as ledger:
        product = a @ b
    assert ledger.flops == 2 * 3 * 5 * 7
    assert ledger.bytes == 4 * (15 + 35 + 21)
    assert ledger.seconds == ledger.flops / 10.0
    assert ledger.peak == ledger.live == 4 * product.numel()


def test_products_in_place_count():
    total = torch.zeros(3, 7)
    with Ledger() as ledger:
        total.addmm_(torch.randn(3, 5), torch.randn(5, 7))
    assert ledger.flops == 2 * 3 * 5 * 7


def test_flops_as_torch_counts_them():
    model, x = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), torch.randn(10, 8)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    with Ledger() as ledger:
        model(x).sum().backward()
    assert ledger.flops == counter.get_total_flops()


def test_what_is_freed_is_not_alive():
    with Ledger() as ledger:
        x = torch.ones(1000)
        y = x * 2
        assert ledger.live == 8000
        view = y[:10]
        del x, y
        assert ledger.live == 4000
        del view
    assert ledger.live == 0
    assert ledger.peak == 8000


def test_the_same_without_data():
    with torch.device("meta"), Ledger() as ledger:
        a = torch.ones(4, 6)
        b = a @ torch.ones(6, 5)
        del a
    assert ledger.flops == 2 * 4 * 6 * 5
    assert ledger.peak == 4 * (24 + 30 + 20) and ledger.live == 4 * b.numel()


def test_saved_tensors_by_hand():
    model, x = nn.Linear(8, 16), torch.randn(10, 8)
    with SavedTensors(model) as saved:
        model(x).tanh()
    assert saved.bytes == 4 * (10 * 8 + 10 * 16)  # the input for W's gradient, the output of tanh; W is there anyway
