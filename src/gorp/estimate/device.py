"""Rates of a device: products, copies, and the time of its smallest operation; measured in two seconds, or given."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gorp.workspace.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Device:
    """Rates that turn counts of operations into seconds."""

    name: str
    """As the table shows it."""
    flops: float
    """Floating-point operations a second of a large matrix product in the dtype of training."""
    bandwidth: float
    """Bytes a second of a large copy, those read and those written added up."""
    latency: float = 5e-6
    """Seconds of the smallest operation."""
    on_host: bool = True
    """Whether the device's memory is the main memory, as on a CPU."""

    def seconds(self, flops: float, moved: float) -> float:
        """Return the roofline time of an operation: max(flops / F, moved / B, latency)."""
        return max(flops / self.flops, moved / self.bandwidth, self.latency)


def device_for(config: RunConfig, *, tflops: float | None = None, gbps: float | None = None) -> Device:
    """Return the device that `config` would train on here, measured; or, if both rates are given, a GPU with these.

    Args:
        config: Says whether the GPU may be used, and whether products are bfloat16.
        tflops: 10^12 floating-point operations a second.
        gbps: 10^9 bytes a second.
    """
    if tflops is not None and gbps is not None:
        name = f"a GPU of {tflops:g} TFLOP/s and {gbps:g} GB/s"
        return Device(name=name, flops=tflops * 1e12, bandwidth=gbps * 1e9, on_host=False)
    here = "cuda" if torch.cuda.is_available() and not config.training.get("use_cpu") else "cpu"
    narrow = config.training.get("bf16") or config.model.dtype == "bfloat16"
    return measure_device(here, torch.bfloat16 if narrow else torch.float32)


def measure_device(device: str, dtype: torch.dtype) -> Device:
    """Measure this machine in about two seconds.

    Each rate is the best of many short trials, because other processes only ever make a trial slower.

    Args:
        device: "cpu" or "cuda".
        dtype: Of the products: float32, or bfloat16 under autocast.
    """
    side = 512 if device == "cpu" else 8192  # short enough to fall between two interruptions
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros((1 if device == "cpu" else 32) * 2**25, dtype=torch.uint8, device=device)
    target, one = torch.empty_like(source), torch.zeros(1, device=device)
    product = _best(lambda: torch.mm(a, b), device, 1.0)
    copy = _best(lambda: target.copy_(source), device, 2 / 3)
    small = _best(lambda: [one.add_(1.0) for _ in range(100)], device, 1 / 3) / 100
    name = torch.cuda.get_device_name() if device == "cuda" else f"this CPU, {torch.get_num_threads()} threads"
    return Device(
        name=f"{name}, measured",
        flops=2 * side**3 / product,
        bandwidth=2 * source.numel() / copy,
        latency=small,
        on_host=device == "cpu",
    )


def _best(action: Callable[[], Any], device: str, budget: float) -> float:
    """Return the least time of a call of `action` in `budget` seconds, after a first call that does not count."""
    best, end = float("inf"), time.perf_counter() + budget
    action()
    while time.perf_counter() < end or best == float("inf"):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
