"""Measure the memory of training, its peak and its parts, for gorp and other methods (peers).

    python benchmarks/memory.py --shape t5-base --layers 2
    python benchmarks/memory.py --shape llama-7b --device cuda --rows 8 --tokens 512

Each peer runs in its own process: the model is built, gorp learns a task, and then one period of T steps is measured.
`peak` is the most that torch's allocator held at once: on a GPU torch.cuda.max_memory_allocated, on a CPU the running
sum of the allocator's events in torch.profiler. `resident` is the largest resident set of the process, including
libraries. The parts are counted from the tensors:

    weights, trained, gradients, optimizer     the model, additional trained parameters, .grad, the optimizer's state
    frames, S                                  gorp's buffers and the fixed rows of A; the bases of protected subspaces
    other                                      everything else held between steps: W₀ of the trained weights
    activations                                tensors that autograd saved in the forward pass, each storage once
"""

import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from peers import PEERS, Peer
from records import arguments, conditions, described, figure, settle, write_record
from shapes import build_shape, random_batch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gorp.estimate.ledger import SavedTensors, held_tensors, storage_bytes


PERIOD = 10
PARTS = ("weights", "trained", "gradients", "optimizer", "frames", "S", "other", "activations")


class Allocator:
    """Current and peak bytes in torch's allocator since this object was created."""

    def __init__(self, device: str) -> None:
        self.device, self.held, self.peak = device, 0, 0

    def run(self, action: Callable[[], Any]) -> Any:
        """Run `action` and add its allocations."""
        if self.device == "cuda":
            result = action()
            gc.collect()
            self.held, self.peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
            return result
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = action()
            gc.collect()
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # pyright: ignore
        for event in sorted(events, key=lambda e: e.start_ns()):
            self.held += event.nbytes()
            self.peak = max(self.peak, self.held)
        return result


def measure(name: str, args: Any) -> dict[str, Any]:
    """Return the bytes of one peer, measured in this process."""
    allocator = Allocator(args.device)

    def build() -> Any:
        model = build_shape(args.shape, layers=args.layers, device=args.device, dtype=args.dtype)
        return model.requires_grad_(False)

    model = allocator.run(build)
    base, weights = {id(t) for t in held_tensors(model)}, storage_bytes(held_tensors(model))
    batch = random_batch(model, rows=args.rows, tokens=args.tokens)
    peer: Peer = allocator.run(lambda: PEERS[name](model, batch))
    allocator.run(lambda: peer.step(batch))  # the first step creates the optimizer's state
    held = allocator.held
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        allocator.peak = held
    allocator.run(lambda: [peer.step(batch) for _ in range(PERIOD)])
    with SavedTensors(peer.model) as saved:
        peer.backward(batch)
    added = [p for p in peer.model.parameters() if id(p) not in base]
    buffers = [b for b in peer.model.buffers() if id(b) not in base]
    parts = {
        "weights": weights,
        "trained": storage_bytes(p for p in added if p.requires_grad),
        "gradients": storage_bytes(p.grad for p in peer.model.parameters() if p.grad is not None),
        "optimizer": storage_bytes(_state(peer.optimizer)),
        "frames": storage_bytes([*(p for p in added if not p.requires_grad), *buffers]),
        "S": 0 if peer.method is None else storage_bytes(peer.method.memory_tensors().values()),
        "activations": saved.bytes,
    }
    counted = sum(parts[key] for key in ("weights", "trained", "optimizer", "frames", "S"))
    parts["other"] = max(0, held - counted)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": allocator.peak, "held": held, "resident": resident, **{part: parts[part] for part in PARTS}}


def _state(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Yield every tensor in the optimizer's state, including those of projectors."""
    for state in optimizer.state.values():
        for value in state.values():
            yield from (v for v in (value, *getattr(value, "__dict__", {}).values()) if isinstance(v, Tensor))


def draw(record: Mapping[str, Any], path: Any) -> None:
    """Draw the parts as stacked bars, with a mark at the peak."""
    drawing, (axis,) = figure(1)
    names = list(record["peers"])[::-1]
    left = [0.0] * len(names)
    for part in PARTS:
        sizes = [record["peers"][name][part] / 2**20 for name in names]
        axis.barh(names, sizes, left=left, label=part)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axis.plot([record["peers"][name]["peak"] / 2**20 for name in names], names, "k|", markersize=14, label="peak")
    axis.set_xlabel("MiB")
    axis.legend(fontsize=6)
    drawing.suptitle(record["title"], fontsize=8)
    drawing.savefig(path, dpi=150)


def main() -> None:
    """Parse the arguments, measure each peer in its own process, and write the result."""
    parser = arguments(__doc__)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--one", choices=list(PEERS), help="measure one peer in this process and print JSON")
    args = settle(parser)
    if args.one:
        print(json.dumps(measure(args.one, args)))
        return
    result = {}
    for name in args.peers:
        done = subprocess.run([sys.executable, *sys.argv, "--one", name], stdout=subprocess.PIPE, text=True, check=True)
        result[name] = json.loads(done.stdout.splitlines()[-1])
    depth = f"{args.layers} layers" if args.layers else "whole"
    title = f"{args.shape}, {depth}, {args.rows} x {args.tokens} tokens, {args.dtype}, {args.device}"
    record = {"title": title, "arguments": described(args), "environment": conditions(), "peers": result}
    path = write_record(args.out, f"memory-{args.shape}-{args.device}-{args.dtype}", record)
    draw(record, path.with_suffix(".png"))
    print(f"{title}; MiB\n| peer | peak | vs lora | resident | {' | '.join(PARTS)} |\n|{'---|' * (len(PARTS) + 4)}")
    for name, sizes in result.items():
        ratio = sizes["peak"] / result["lora"]["peak"] if "lora" in result else float("nan")
        cells = [f"{sizes[key] / 2**20:.1f}" for key in ("peak", "resident", *PARTS)]
        print(f"| {name} | {cells[0]} | {ratio:.3f} | {' | '.join(cells[1:])} |")


if __name__ == "__main__":
    main()
