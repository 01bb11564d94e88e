"""Show where the time of a training step goes on a GPU: in kernels, or in waiting for Python to start them.

    python benchmarks/profile_steps.py --device cuda --shape llama-7b --layers 2 --rows 8 --tokens 512 --out FOLDER

For each peer it prints the wall time of a step, when Python had started the step's last operation, the time that the
GPU's kernels and copies took together, and their number; then the operations that took most. If Python ends when the
step ends, the GPU waits for Python.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from peers import PEERS, Peer
from records import arguments, conditions, described, settle, write_record
from shapes import build_shape, random_batch, twin
from torch.profiler import ProfilerActivity, profile


WARM_UP, STEPS = 12, 10
"""Steps before the measurement, in which every layer gets a frame; and steps measured, a whole period of refreshes."""


def measure(peer: Peer, batch: Any, *, cuda: bool, shown: int) -> dict[str, Any]:
    """Return the times of a step in milliseconds, and the `shown` longest operations."""
    wait: Callable[[], None] = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(WARM_UP):
        peer.step(batch)
    wait()
    start = time.perf_counter()
    for _ in range(STEPS):
        peer.step(batch)
    started = time.perf_counter() - start
    wait()
    wall = time.perf_counter() - start
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as recorded:
        for _ in range(STEPS):
            peer.step(batch)
        wait()
    events = recorded.key_averages()
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    longest = sorted(kernels or events, key=_own_time, reverse=True)[:shown]
    return {
        "wall": 1e3 * wall / STEPS,
        "started": 1e3 * started / STEPS,
        "kernels": sum(_own_time(event) for event in kernels) / 1e3 / STEPS,
        "launches": sum(event.count for event in kernels) / STEPS,
        "longest": [(event.key, event.count / STEPS, _own_time(event) / 1e3 / STEPS) for event in longest],
    }


def _own_time(event: Any) -> float:
    """Return the microseconds of an operation without those that it calls."""
    return event.self_device_time_total if event.device_type.name == "CUDA" else event.self_cpu_time_total


def main() -> None:
    """Parse the arguments, measure, print and write the result."""
    parser = arguments(__doc__)
    parser.add_argument("--peers", nargs="*", default=["gorp", "lora"], choices=list(PEERS))
    parser.add_argument("--shown", type=int, default=20, help="number of operations that are printed")
    args = settle(parser)
    model = build_shape(args.shape, layers=args.layers, device=args.device, dtype=args.dtype)
    batch = random_batch(model, rows=args.rows, tokens=args.tokens)
    found = {}
    for name in args.peers:
        peer = PEERS[name](twin(model), batch)
        found[name] = measure(peer, batch, cuda=args.device == "cuda", shown=args.shown)
        step = found[name]
        print(f"{name}: {step['wall']:.2f} ms, started after {step['started']:.2f} ms, ", end="")
        print(f"kernels {step['kernels']:.2f} ms in {step['launches']:.0f}")
        for key, count, took in step["longest"]:
            print(f"  {took:8.3f} ms  x {count:6.1f}  {key[:100]}")
        del peer
    record = {"arguments": described(args), "environment": conditions(), "peers": found}
    write_record(args.out, f"profile-{args.shape}-{args.device}-{args.dtype}", record)


if __name__ == "__main__":
    main()
