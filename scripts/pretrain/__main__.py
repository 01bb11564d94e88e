"""Command line of the pre-training; see the package for how to call it."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from gorp.storage import read_json, write_json
from scripts.pretrain import checkpoint, fill, finetune, packing
from scripts.pretrain.batches import LlamaBatches, T5Batches
from scripts.pretrain.corpus import PackedTokens
from scripts.pretrain.export import export
from scripts.pretrain.kept import TOLD, Kept, word_ends
from scripts.pretrain.models import build, taken
from scripts.pretrain.noise import SpanCorruption
from scripts.pretrain.objective import Objective
from scripts.pretrain.pairs import PackedPairs
from scripts.pretrain.reading import SHAPES, Reading, all_texts
from scripts.pretrain.schedule import Budget, timestamp
from scripts.pretrain.teacher import Teacher
from scripts.pretrain.tokenizer import load
from scripts.pretrain.train import Run, Settings
from scripts.pretrain.transplant import into_llama, into_t5


LLAMA_LENGTH = 256
"""Tokens of a row of the Llama."""

SHARES = {"t5": ((0.7, 0.4), (0.15, 0.4)), "llama": ((0.6, 0.35), (0.25, 0.5))}
"""Share of batches read with the teacher, and of instructions, in the first and second half; the rest is text. The
Llama learns to read from instructions too: only there does the end of a row ask for the whole of it."""

FITTED_BATCHES = 40
"""Batches over which the map to a further encoder takes its least squares."""

MEDIAN_TEXTS = 100
"""Unchanged passages over which the transplanting takes its medians."""


def batches(args: argparse.Namespace, learn: bool) -> T5Batches | LlamaBatches:
    """Open token files as batches: those to learn from, or the held-out."""
    files = [args.packed / "valid.npy"]
    if learn:
        files = [args.packed / f"train-{part}.npy" for part in range(len(list(args.packed.glob("train-*.npy"))))]
    if args.architecture == "llama":
        pool = PackedPairs(args.packed, args.seed, LLAMA_LENGTH - 34, 32) if learn else None
        return LlamaBatches(corpus=PackedTokens(files, LLAMA_LENGTH, args.seed), pairs=pool, rows=args.rows)
    noise = SpanCorruption()
    shape = T5Batches.prompt_length, T5Batches.answer_length
    pool = PackedPairs(args.packed, args.seed, shape[0] - 1, shape[1] - 1) if learn else None
    corpus = PackedTokens(files, noise.window, args.seed)
    return T5Batches(corpus=corpus, pairs=pool, noise=noise, rows=args.rows, seed=args.seed)


def begin(args: argparse.Namespace, tokenizer: Tokenizer, source: str, reading: Reading) -> Objective:
    """Make the model, with the encoder's weights in it or with those of a model folder."""
    encoder = Teacher(source, dtype=torch.float32)
    model = build(args.architecture, args.seed, encoder.model.config, tokenizer.get_vocab_size())
    objective = Objective(model, reading.teacher.width, mapped=isinstance(reading.teacher, Kept))
    if (args.run / checkpoint.FILE).exists():
        return objective
    if args.model:
        load_model(model, str(args.model / "model.safetensors"), strict=False)
        model.tie_weights()
    else:
        transplant(args.architecture, objective, encoder, tokenizer, reading)
    if objective.map is not None:
        objective.fit([reading.batch(number) for number in range(FITTED_BATCHES)])
    return objective


def transplant(
    architecture: str, objective: Objective, encoder: Teacher, tokenizer: Tokenizer, reading: Reading
) -> None:
    """Put the encoder's weights into the model."""
    clean = [number for number in reading.pools[1].tolist() if reading.clean[number]][:MEDIAN_TEXTS]
    layers, texts = taken(architecture, encoder.model.config), [reading.text(number) for number in clean]
    with torch.no_grad():
        if architecture == "t5":
            scale, shift = None, into_t5(objective.model, encoder, tokenizer, layers, texts)
        else:
            scale, shift = into_llama(objective.model, encoder, tokenizer, layers, texts)
            objective.scale.copy_(scale)
        if objective.map is None:
            objective.shift.copy_(shift)


def train(args: argparse.Namespace) -> None:
    """Begin or go on with a run."""
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    tokenizer, source = load(args.packed), read_json(args.packed / "encoder.json")["source"]
    if args.model and (own := AutoTokenizer.from_pretrained(args.model).get_vocab()) != tokenizer.get_vocab():
        raise ValueError(
            f"{args.model} has other tokens ({len(own):,}) than {args.packed}; pack with what it was packed with."
        )
    args.run.mkdir(parents=True, exist_ok=True)
    llama = args.architecture == "llama"
    if (args.packed / TOLD).exists():
        teacher = Kept(args.packed, word_ends(all_texts(args.packed)))
    else:
        teacher = Teacher(source, SHAPES[-1][0] + 32)
    reading = Reading(args.packed, tokenizer, teacher, 2 * args.rows, args.seed, llama)
    objective = begin(args, tokenizer, source, reading).to(args.device)
    reading_shares, pair_shares = SHARES[args.architecture]
    settings = Settings(
        reading_shares=reading_shares,
        pair_shares=pair_shares,
        rate=args.rate,
        save_seconds=args.save_seconds,
        compiled=not args.eager,
        autocast=not args.float32,
        seed=args.seed,
    )
    # The budget in seconds counts from the first start, which a run that goes on has in its checkpoint.
    budget = Budget(unit="tokens", total=args.tokens or 1, decay=args.decay)
    curve = read_json(args.model / "curve.json") if args.model else []
    held_out = batches(args, learn=False)
    run = Run(args.run, objective, batches(args, learn=True), held_out, reading, budget, settings, curve)
    if args.until:
        run.budget = Budget(unit="seconds", total=timestamp(args.until) - run.progress.began, decay=args.decay)
    write_json(args.run / "run.json", told(args, run))
    began = time.monotonic()
    progress = run(session_seconds=args.session_seconds)
    print(f"step {progress.step}, {progress.tokens:,} tokens, {progress.curve[-1]}, {time.monotonic() - began:.0f} s")


def told(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Say what `run.json` holds: what was asked, and for every session from which token on it was asked."""
    path = args.run / "run.json"
    if not path.exists() and args.model:
        path = args.model / "run.json"
    earlier = read_json(path)["sessions"] if path.exists() else []
    encoder = read_json(args.packed / "encoder.json")
    session = {
        "tokens": run.progress.tokens,
        "budget": f"until {args.until}" if args.until else f"{args.tokens:,.0f} tokens",
        "rate": args.rate,
        "decay": args.decay,
        "read": run.reading.teacher.told["name"] if isinstance(run.reading.teacher, Kept) else encoder["name"],
        "machine": torch.cuda.get_device_name() if run.device.type == "cuda" else f"CPU, {args.threads} thread(s)",
    }
    return {
        "architecture": args.architecture,
        "packed": str(args.packed.resolve()),
        "rows": run.train.rows,
        "seed": args.seed,
        "vocabulary": load(args.packed).get_vocab_size(),
        "torch": torch.__version__,
        "encoder": encoder,
        "layers": taken(args.architecture, Teacher(encoder["source"]).model.config),
        "kept": run.reading.teacher.told if isinstance(run.reading.teacher, Kept) else None,
        "reading_shares": run.settings.reading_shares,
        "pair_shares": run.settings.pair_shares,
        "sessions": [*(entry for entry in earlier if entry["tokens"] < session["tokens"]), session],
    }


def parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    root = argparse.ArgumentParser(prog="python -m scripts.pretrain", description=__doc__)
    commands = root.add_subparsers(required=True)
    packing.add_commands(commands)
    two = commands.add_parser("train", help="begin or go on with a run")
    two.add_argument("architecture", choices=("t5", "llama"))
    two.add_argument("packed", type=Path)
    two.add_argument("run", type=Path)
    two.add_argument("--model", type=Path, help="exported model folder to begin with, instead of the encoder's weights")
    length = two.add_mutually_exclusive_group(required=True)
    length.add_argument("--tokens", type=float, help="budget in tokens")
    length.add_argument("--until", help="time (UTC) at which the decay ends, as 2030-01-01T18:00")
    two.add_argument("--decay", type=float, default=0.5, help="share of the budget that is decay")
    two.add_argument("--session-seconds", type=float, default=float("inf"), help="stop after this time, to go on later")
    two.add_argument("--save-seconds", type=float, default=240.0)
    two.add_argument("--rows", type=int, default=16, help="rows of about 256 tokens per batch")
    two.add_argument("--rate", type=float, default=Settings.rate, help="peak rate, in deviations of a tensor")
    two.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    two.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    two.add_argument("--float32", action="store_true", help="no bfloat16: faster on processors that only emulate it")
    two.add_argument("--eager", action="store_true", help="do not compile")
    two.add_argument("--seed", type=int, default=0)
    two.set_defaults(command=train)
    three = commands.add_parser("export", help="write a model folder from the newest checkpoint")
    three.add_argument("run", type=Path)
    three.add_argument("target", type=Path)
    three.set_defaults(command=lambda args: print(json.dumps(export(args.run, args.target))))
    fill.add_arguments(commands.add_parser("fill", help="fill up the training rows of tasks from their further files"))
    finetune.add_arguments(commands.add_parser("finetune", help="measure what a model folder learns, task by task"))
    return root


if __name__ == "__main__":
    arguments = parser().parse_args()
    arguments.command(arguments)
