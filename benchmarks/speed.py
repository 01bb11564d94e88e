"""Measure the time and arithmetic of a training step, for gorp and other methods (peers), in one run.

    python benchmarks/speed.py --shape t5-base --layers 2                    CPU, float32
    python benchmarks/speed.py --shape t5-large --device cuda --rows 8 --tokens 512

All peers exist at once, share the same base weights, and their steps alternate. gorp is at its second task with a real
S. `--periods` times T steps are timed, including refreshes. The floor is a lower bound: the arithmetic of a forward
pass and of the gradients of the layers' inputs, which every method of fine-tuning needs. The script reports

    step            median seconds of a step                  mean   over whole periods, including refreshes
    vs lora         median over periods of (median of gorp's steps / median of LoRA's), with the range of the periods
    slowest         slowest step of the period / median step of the period, each the median over periods; raw: slowest
                    single step / median step, including other load of the machine
    flops / floor   matrix products counted by torch.utils.flop_counter over one period; SVD and QR are not counted

GaLore with gap 200 has the same steps as with gap 10, but fewer of those with SVDs; its mean is computed from the times
of these two kinds of steps.
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
"""T: steps between gorp's refreshes, and GaLore's short gap."""


def _in_place(total: Any, left: Any, right: Any, *, out_shape: Any = None, **_: Any) -> int:
    return 2 * math.prod(left) * right[-1]


IN_PLACE = {torch.ops.aten.addmm_: _in_place, torch.ops.aten.baddbmm_: _in_place}
"""In-place products, which the counter does not know -> function from shapes to flops."""


def flops(action: Callable[[], Any]) -> int:
    """Return the floating-point operations of the matrix products in `action`, with attention as plain products."""
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter, sdpa_kernel(SDPBackend.MATH):
        action()
    return counter.get_total_flops()


def floor_flops(model: nn.Module, batch: Batch) -> int:
    """Return the lower bound: forward pass and input gradients, back to the first linear layers, without training."""
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
    """Return the seconds of every step, after a period of warm-up in which every core gets its frame."""
    actions = {name: lambda peer=peer: peer.step(batch) for name, peer in peers.items()}
    timer.interleaved(actions, PERIOD)
    return timer.interleaved(actions, periods * PERIOD)


def summarize(times: Sequence[float], tokens: int) -> dict[str, Any]:
    """Return the reported numbers of one peer."""
    median = statistics.median(times)
    by_position = [statistics.median(times[position::PERIOD]) for position in range(PERIOD)]
    return {
        "step": spread(times),
        "mean": statistics.fmean(times),
        "tokens_per_second": tokens / statistics.fmean(times),
        "slowest": max(by_position) / statistics.median(by_position),
        "slowest_raw": max(times) / median,
        "seconds": list(times),
    }


def ratios(times: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Return the spread over periods of the median step divided by the other peer's median step."""
    pairs = zip(chunks(times, PERIOD), chunks(others, PERIOD), strict=True)
    return spread([statistics.median(a) / statistics.median(b) for a, b in pairs])


def galore_mean(times: Sequence[float], gap: int) -> float:
    """Return the mean seconds of a GaLore step at another gap: one step in `gap` has SVDs."""
    with_svd = statistics.median(times[_slowest_position(times) :: PERIOD])
    plain = statistics.median([t for i, t in enumerate(times) if i % PERIOD != _slowest_position(times)])
    return plain + (with_svd - plain) / gap


def _slowest_position(times: Sequence[float]) -> int:
    return max(range(PERIOD), key=lambda position: statistics.median(times[position::PERIOD]))


def draw(record: Mapping[str, Any], path: Any) -> None:
    """Draw bars of the step time relative to LoRA, and of the arithmetic relative to the lower bound."""
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
    """Parse the arguments, measure, and write the result."""
    parser = arguments(__doc__)
    parser.add_argument("--periods", type=int, default=5, help="number of timed periods of T = 10 steps")
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
