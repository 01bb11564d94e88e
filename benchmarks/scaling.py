"""Measure how gorp's cost grows with k, T, s, m, n and over 200 tasks, and the cost of a task's end.

    python benchmarks/scaling.py [--parts k T s m n tasks boundary] [--shape gorp-tiny] [--device cuda]

k, T, s, m, n: a chain of linear layers with a core on each and LoRA on every other one, compared with the same chain
with LoRA on each layer; their steps alternate. The cost is the mean step over whole periods.

tasks: `--shape` learns 200 tasks of 11 steps on random rows, and the kept state is measured after each. Then two copies
continue, one from after task 1 and one from after task 199, and their steps alternate.

boundary: tasks of 1000 rows of full length; seconds of `end_task` and the next `begin_task`, divided by the seconds of
the steps.
"""

import copy
import statistics
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from peers import RANK, RATE, Peer, Timer, attach, chunks, spread, task_of
from records import arguments, conditions, described, figure, settle, write_record
from shapes import build_shape, queries_and_values, random_batch, twin
from torch import Tensor, nn

from gorp.core.state import footprint
from gorp.layers.lora import LoraSettings, add_lora
from gorp.methods.gorp import Gorp, GorpConfig


PERIOD = 10
BASE = {"k": 8, "T": 10, "s": 0.1, "m": 512, "n": 512}
"""The default chain, of which each sweep varies one number; s is a share of n."""

SWEEPS: dict[str, tuple[float, ...]] = {
    "k": (2, 4, 8, 16, 32, 64),
    "T": (1, 2, 5, 10, 20, 50),
    "s": (0.0, 0.05, 0.1, 0.25, 0.5),
    "m": (128, 256, 512, 1024, 2048),
    "n": (128, 256, 512, 1024, 2048),
}


class Chain(nn.Module):
    """Two residual blocks n → m → n with tanh; the loss is a mean square.

    Args:
        m: Inner width.
        n: Outer width.
    """

    def __init__(self, m: int, n: int) -> None:
        super().__init__()
        self.up = nn.ModuleList([nn.Linear(n, m, bias=False) for _ in range(2)])
        self.down = nn.ModuleList([nn.Linear(m, n, bias=False) for _ in range(2)])

    def forward(self, x: Tensor) -> SimpleNamespace:
        """Return the loss for `x`, N x n."""
        for up, down in zip(self.up, self.down, strict=True):
            x = x + torch.tanh(down(torch.tanh(up(x))))
        return SimpleNamespace(loss=x.square().mean())


LAYERS = (r".*",)


def chain_peers(values: Mapping[str, float], device: str) -> tuple[dict[str, Peer], dict[str, Tensor]]:
    """Return gorp with `values` and LoRA, both on the same chain, and the batch."""
    torch.manual_seed(0)
    m, n = int(values["m"]), int(values["n"])
    model = Chain(m, n).to(device).requires_grad_(False)
    batch = {"x": torch.randn(512, n, device=device)}
    config = GorpConfig(
        full_modules=LAYERS, rank=int(values["k"]), refresh_every=int(values["T"]), oversampling=8, budget=1.0
    )
    method = Gorp(config, LoraSettings(r=RANK, target_modules=(r"up\.\d",)))
    method.setup(mine := twin(model))
    memory = {}
    for name, weight in mine.named_parameters():
        size = int(values["s"] * weight.shape[1])
        if size:
            memory[name] = torch.linalg.qr(torch.randn(weight.shape[1], size)).Q.contiguous()
            memory[f"{name}::energy"] = torch.ones(size)
    method.memory.load_state_dict(memory)
    theirs = twin(model)
    names = [name for name, layer in theirs.named_modules() if isinstance(layer, nn.Linear)]
    pairs = add_lora(theirs, names, LoraSettings(r=RANK))
    factors = [factor for pair in pairs.values() for factor in (pair.down, pair.up)]
    lora = Peer(theirs, torch.optim.AdamW(factors, lr=RATE, fused=True))
    return {"gorp": attach(method, mine, 2), "lora": lora}, batch


def sweep(name: str, timer: Timer, periods: int) -> list[dict[str, Any]]:
    """Return, for each value of `SWEEPS[name]`, the mean step of gorp and of LoRA, and their ratio by period."""
    points = []
    for value in SWEEPS[name]:
        values = BASE | {name: value}
        peers, batch = chain_peers(values, timer.device)
        period = max(int(values["T"]), PERIOD)
        actions = {who: partial(peer.step, batch) for who, peer in peers.items()}
        timer.interleaved(actions, period)
        times = timer.interleaved(actions, periods * period)
        means = {who: [statistics.fmean(part) for part in chunks(of, period)] for who, of in times.items()}
        ratio = spread([a / b for a, b in zip(means["gorp"], means["lora"], strict=True)])
        points.append({name: value, **{who: spread(of) for who, of in means.items()}, "ratio": ratio})
        print(
            f"{name} {value:g}: gorp / lora {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})",
            flush=True,
        )
    return points


def over_tasks(args: Any, timer: Timer, *, tasks: int, periods: int) -> dict[str, Any]:
    """Return the kept bytes after each task, and the ratio of the step at the last task to that at the second."""
    model = build_shape(args.shape, layers=args.layers, device=args.device, dtype=args.dtype).requires_grad_(False)
    method, settings = _method(model)
    method.setup(mine := twin(model))
    kept, states = [], {}
    for index in range(1, tasks):
        batch = random_batch(model, rows=2, tokens=32, seed=index)
        peer = attach(method, mine, index, num_steps=PERIOD, batch=batch)
        for _ in range(PERIOD + 1):
            peer.step(batch)
        boundary = timer.seconds(
            lambda i=index, p=peer, b=batch: method.end_task(mine, p.optimizer, task_of(i, batch=b))
        )
        memory = footprint(method.memory.state_dict())
        total = footprint(method.state_dict())
        capacity = statistics.fmean(method.memory.capacity(name) for name in method.memory)
        kept.append({"task": index, "bytes": total, "S": memory, "capacity": capacity, "end_seconds": boundary})
        if index in (1, tasks - 1):
            states[index + 1] = copy.deepcopy(method.state_dict())
    batch = random_batch(model, rows=args.rows, tokens=args.tokens)
    peers = {}
    for index, state in states.items():
        again, _ = _method(model)
        again.setup(copied := twin(model))
        again.load_state_dict(state)
        peers[index] = attach(again, copied, index, batch=batch)
    actions = {str(index): partial(peer.step, batch) for index, peer in peers.items()}
    timer.interleaved(actions, PERIOD)
    times = timer.interleaved(actions, periods * PERIOD)
    first, last = times.values()
    means = [[statistics.fmean(part) for part in chunks(of, PERIOD)] for of in (first, last)]
    ratio = spread([b / a for a, b in zip(*means, strict=True)])
    at_budget = next((k for k in kept if k["bytes"] == kept[-1]["bytes"]), kept[-1])
    print(
        f"step at task {tasks} / task 2: {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f}); kept bytes "
        f"{kept[0]['bytes']} after task 1, {kept[-1]['bytes']} after task {tasks - 1}, unchanged from task "
        f"{at_budget['task']} on",
        flush=True,
    )
    return {"step_ratio": ratio, "kept": kept, "constant_from_task": at_budget["task"], "settings": settings}


def boundary(args: Any, timer: Timer, *, rows: int, repeats: int) -> dict[str, Any]:
    """Return the seconds between two tasks divided by the seconds of a task's steps."""
    model = build_shape(args.shape, layers=args.layers, device=args.device, dtype=args.dtype).requires_grad_(False)
    method, _ = _method(model)
    method.setup(model)
    steps, shares, parts = -(-rows // args.rows), [], []
    batch = random_batch(model, rows=args.rows, tokens=args.tokens, seed=0)
    peer = attach(method, model, 1, num_steps=steps, batch=batch)
    for index in range(1, repeats + 2):
        batch = random_batch(model, rows=args.rows, tokens=args.tokens, seed=index)
        task = timer.seconds(lambda p=peer, b=batch: [p.step(b) for _ in range(steps)])
        end = timer.seconds(lambda i=index, p=peer, b=batch: method.end_task(model, p.optimizer, task_of(i, batch=b)))
        begin = timer.seconds(lambda i=index, b=batch: parts.append(attach(method, model, i + 1, steps, b)))
        peer = parts.pop()
        shares.append({"task_seconds": task, "end_seconds": end, "begin_seconds": begin, "share": (end + begin) / task})
    shares = shares[1:]  # the first task has no S yet
    share = spread([s["share"] for s in shares])
    print(f"boundary / task: {share['median']:.4f} ({share['min']:.4f} to {share['max']:.4f})", flush=True)
    return {"share": share, "tasks": shares, "steps": steps}


def _method(model: Any) -> tuple[Gorp, dict[str, Any]]:
    options = {"full_modules": "all-linear", "rank": RANK, "refresh_every": PERIOD}
    lora = LoraSettings(r=RANK, target_modules=queries_and_values(model))
    return Gorp(GorpConfig(**options), lora), options


def draw(parts: Mapping[str, Any], path: Any) -> None:
    """Draw one panel per sweep, and two for the tasks."""
    sweeps = [name for name in SWEEPS if name in parts]
    drawing, axes = figure(len(sweeps) + 2 * ("tasks" in parts) or 1)
    for axis, name in zip(axes, sweeps, strict=False):
        points = parts[name]
        x, middle = [p[name] for p in points], [p["ratio"]["median"] for p in points]
        low = [p["ratio"]["median"] - p["ratio"]["min"] for p in points]
        high = [p["ratio"]["max"] - p["ratio"]["median"] for p in points]
        axis.errorbar(x, middle, [low, high], marker="o", color="#0072b2")
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_xlabel({"s": "s / n"}.get(name, name))
        axis.set_ylabel("step, gorp / LoRA")
        if name != "s":
            axis.set_xscale("log", base=2)
    if "tasks" in parts:
        kept = parts["tasks"]["kept"]
        for axis, key, label in ((axes[-2], "bytes", "kept, MiB"), (axes[-1], "end_seconds", "end of task, s")):
            axis.plot(
                [k["task"] for k in kept], [k[key] / (2**20 if key == "bytes" else 1) for k in kept], color="#d55e00"
            )
            axis.set_xlabel("task")
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
    drawing.savefig(path, dpi=150)


def main() -> None:
    """Parse the arguments, measure, and write the result."""
    parser = arguments(__doc__, rows=8, tokens=64)
    parser.set_defaults(shape="gorp-tiny")
    parser.add_argument(
        "--parts", nargs="*", default=[*SWEEPS, "tasks", "boundary"], choices=[*SWEEPS, "tasks", "boundary"]
    )
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--periods", type=int, default=5)
    args = settle(parser)
    timer, parts = Timer(args.device, args.clock), dict[str, Any]()
    for name in args.parts:
        if name in SWEEPS:
            parts[name] = sweep(name, timer, args.periods)
        elif name == "tasks":
            parts[name] = over_tasks(args, timer, tasks=args.tasks, periods=args.periods)
        else:
            parts[name] = boundary(args, timer, rows=1000, repeats=3)
    record = {"arguments": described(args), "environment": conditions(), **parts}
    path = write_record(args.out, f"scaling-{args.shape}-{args.device}-{args.dtype}-{'-'.join(args.parts)}", record)
    if set(args.parts) - {"boundary"}:
        draw(parts, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
