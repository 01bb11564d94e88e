"""How fast a device multiplies, moves bytes and starts an operation: given, or measured in about two seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gorp.workspace.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Device:
    """The numbers that turn counts into seconds."""

    name: str
    """For the table."""
    flops: float
    """Floating-point operations a second that a large matrix product reaches, in the dtype of training."""
    bandwidth: float
    """Bytes a second, read and written together, of a large copy."""
    latency: float = 5e-6
    """Seconds that the smallest operation takes."""
    on_host: bool = True
    """Whether its memory is the main memory: true of a CPU."""

    def seconds(self, flops: float, moved: float) -> float:
        """Roofline time of one operation: `flops` operations, `moved` bytes."""
        return max(flops / self.flops, moved / self.bandwidth, self.latency)


def device_for(config: RunConfig, *, tflops: float | None = None, gbps: float | None = None) -> Device:
    """The device that `config` would train on here, measured; or, where both numbers are given, a GPU that has them.

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
    """Measure this machine, in about two seconds; the best of many short trials, as what slows one is not the device.

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
    """Least seconds of `action` in `budget` seconds, after one call that does not count."""
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
