"""What a training step costs in time and arithmetic, gorp beside its peers, in one run.

    python benchmarks/speed.py --shape t5-base --layers 2                    CPU, float32
    python benchmarks/speed.py --shape t5-large --device cuda --rows 8 --tokens 512

All peers are alive at once over the same base weights, and their steps alternate. gorp is at its second task with a
real S, and its refreshes fall where they fall: `--periods` times T steps are timed. Floor: the arithmetic of a
forward pass and of the gradients of the layers' inputs, which no method of fine-tuning can do without. Reported are

    step            median seconds of a step                  mean   over whole periods, refreshes in it
    vs lora         median over periods of (median of gorp's steps / median of LoRA's), with the range of the periods
    slowest         slowest place of the period / median of the places, each place the median over periods; raw: slowest
                    single step / median step, with whatever else the machine did
    flops / floor   matrix products counted by torch.utils.flop_counter over one period; SVD and QR are not counted

GaLore with gap 200 does the same steps as with gap 10, with fewer of the steps that take SVDs; its mean is computed
from those two kinds of steps.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peers import PEERS, Batch, Peer, Timer, chunks, load_average, spread
from records import arguments, conditions, described, figure, settle, write_record
from shapes import build_shape, random_batch, twin
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


PERIOD = 10
"""T, of gorp's refreshes and of GaLore's short gap."""


def _in_place(total: Any, left: Any, right: Any, *, out_shape: Any = None, **_: Any) -> int:
    return 2 * math.prod(left) * right[-1]


IN_PLACE = {torch.ops.aten.addmm_: _in_place, torch.ops.aten.baddbmm_: _in_place}
"""Products that the counter does not know by this name; the arguments are shapes."""


def flops(action: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products in `action`, attention as plain products."""
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter, sdpa_kernel(SDPBackend.MATH):
        action()
    return counter.get_total_flops()


def floor_flops(model: nn.Module, batch: Batch) -> int:
    """Forward and input gradients alone, down to the outputs of the first linear layers: nothing is trained."""
    frozen = twin(model)
    linear = [layer for layer in frozen.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(_needs_gradient) for layer in linear]
    total = flops(lambda: frozen(**batch).loss.backward())
    for handle in handles:
        handle.remove()
    return total


def _needs_gradient(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if not output.requires_grad:
        output.requires_grad_()


def measure(peers: Mapping[str, Peer], batch: Batch, *, periods: int, timer: Timer) -> dict[str, list[float]]:
    """Seconds of every step; a period beforehand warms everything up, and gives every core its frame."""
    actions = {name: lambda peer=peer: peer.step(batch) for name, peer in peers.items()}
    timer.interleaved(actions, PERIOD)
    return timer.interleaved(actions, periods * PERIOD)


def summarize(times: Sequence[float], tokens: int) -> dict[str, Any]:
    """Figures of one peer."""
    median = statistics.median(times)
    places = [statistics.median(times[place::PERIOD]) for place in range(PERIOD)]
    return {
        "step": spread(times),
        "mean": statistics.fmean(times),
        "tokens_per_second": tokens / statistics.fmean(times),
        "slowest": max(places) / statistics.median(places),
        "slowest_raw": max(times) / median,
        "seconds": list(times),
    }


def ratios(times: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Period by period: median step over the other's median step."""
    pairs = zip(chunks(times, PERIOD), chunks(others, PERIOD), strict=True)
    return spread([statistics.median(a) / statistics.median(b) for a, b in pairs])


def galore_mean(times: Sequence[float], gap: int) -> float:
    """Mean seconds of a GaLore step at another gap: one step with SVDs in `gap`."""
    with_svd = statistics.median(statistics.median(times[place::PERIOD]) for place in [_slowest_place(times)])
    plain = statistics.median([t for i, t in enumerate(times) if i % PERIOD != _slowest_place(times)])
    return plain + (with_svd - plain) / gap


def _slowest_place(times: Sequence[float]) -> int:
    return max(range(PERIOD), key=lambda place: statistics.median(times[place::PERIOD]))


def draw(record: Mapping[str, Any], path: Any) -> None:
    """Bars: step time and arithmetic beside LoRA's and the floor's."""
    peers = record["peers"]
    drawing, (left, right) = figure(2)
    names = list(peers)[::-1]
    base = peers["lora"]["mean"] if "lora" in peers else 1.0
    left.barh(names, [peers[n]["mean"] / base for n in names], color="#0072b2")
    left.set_xlabel("mean seconds of a step, PEFT LoRA = 1")
    right.barh(names, [peers[n]["flops_over_floor"] for n in names], color="#009e73")
    right.set_xlabel("arithmetic / floor")
    for axis in (left, right):
        axis.margins(x=0.15)
        axis.axvline(1.0, color="black", linewidth=0.8)
        for bar in axis.patches:
            axis.annotate(f" {bar.get_width():.2f}", (bar.get_width(), bar.get_y() + 0.25), fontsize=8)
    drawing.suptitle(record["title"], fontsize=9)
    drawing.savefig(path, dpi=150)


def main() -> None:
    """Parse, measure, write."""
    parser = arguments(__doc__)
    parser.add_argument("--periods", type=int, default=5, help="of T = 10 steps, timed")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    args = settle(parser)
    before = load_average()
    model = build_shape(args.shape, layers=args.layers, device=args.device, dtype=args.dtype)
    batch = random_batch(model, rows=args.rows, tokens=args.tokens)
    tokens = sum(ids.numel() for ids in batch.values()) if model.config.is_encoder_decoder else batch["labels"].numel()
    floor = floor_flops(model, batch)
    peers = {name: PEERS[name](twin(model), batch) for name in args.peers}
    times = measure(peers, batch, periods=args.periods, timer=Timer(args.device, args.clock))
    result: dict[str, Any] = {}
    for name, peer in peers.items():
        counted = flops(lambda peer=peer: [peer.step(batch) for _ in range(PERIOD)]) / PERIOD
        result[name] = summarize(times[name], tokens) | {"flops": counted, "flops_over_floor": counted / floor}
        if "lora" in times:
            result[name]["vs_lora"] = ratios(times[name], times["lora"])
    if "galore" in times:
        result["galore"]["mean_gap_200"] = galore_mean(times["galore"], 200)
    title = f"{args.shape}, {model.config.num_hidden_layers} layers, {args.rows} x {args.tokens} tokens, {args.dtype}, "
    title += f"{args.device}"
    record = {
        "title": title,
        "arguments": described(args),
        "environment": conditions() | {"load_average_before": before},
        "parameters": sum(p.numel() for p in model.parameters()),
        "floor_flops": floor,
        "peers": result,
    }
    path = write_record(args.out, f"speed-{args.shape}-{args.device}-{args.dtype}", record)
    draw(record, path.with_suffix(".png"))
    print(title)
    print(
        "| peer | step, s | mean, s | vs lora (range) | slowest (raw) | tokens/s | flops / floor |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, of in result.items():
        against = of.get("vs_lora", {"median": float("nan"), "min": float("nan"), "max": float("nan")})
        print(
            f"| {name} | {of['step']['median']:.4f} | {of['mean']:.4f} | {against['median']:.3f} "
            f"({against['min']:.3f} to {against['max']:.3f}) | {of['slowest']:.2f} ({of['slowest_raw']:.2f}) | "
            f"{of['tokens_per_second']:.0f} | {of['flops_over_floor']:.3f} |"
        )


if __name__ == "__main__":
    main()
