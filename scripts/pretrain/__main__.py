"""Command line of the pre-training; see the package for how to call it."""

import argparse
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from gorp.storage import write_json
from scripts.pretrain.batches import LlamaBatches, T5Batches
from scripts.pretrain.corpus import PackedTokens, documents, pack, parts, sample
from scripts.pretrain.export import export
from scripts.pretrain.instructions import pairs
from scripts.pretrain.models import build
from scripts.pretrain.noise import SpanCorruption
from scripts.pretrain.pairs import PackedPairs, pack_pairs
from scripts.pretrain.schedule import Budget
from scripts.pretrain.tokenizer import VOCABULARY, load, train_tokenizer
from scripts.pretrain.train import Run, Settings


LLAMA_LENGTH = 512
"""Tokens of a row of the Llama."""


def pack_corpus(args: argparse.Namespace) -> None:
    """Write tokenizer, token files and instruction pairs of a corpus folder."""
    target: Path = args.packed
    target.mkdir(parents=True, exist_ok=True)
    files = parts(args.corpus)[: args.parts]
    share = 1.0 if len(files) == 1 else 0.4
    chosen = (text for seed, file in enumerate(files[:2]) for text in sample(file, share, seed))
    train_tokenizer(chosen, args.vocabulary).save(str(target / "tokenizer.json"))
    tokenizer = load(target)
    counts = {}
    for file in [args.corpus / "valid.txt", *files]:
        counts[file.name] = pack(file, tokenizer, target / f"{file.name.split('.')[0]}.npy")
        print(f"{file.name}: {counts[file.name]:,} tokens", flush=True)

    def all_pairs() -> Iterator[tuple[str, str]]:
        for seed, file in enumerate(files[: args.pair_parts]):
            yield from pairs(documents(file), seed, args.pairs_per_document)

    counts["pairs"] = pack_pairs(all_pairs(), tokenizer, target)
    print(f"{counts['pairs']:,} instruction pairs", flush=True)
    write_json(target / "counts.json", counts)


def batches(args: argparse.Namespace, files: list[Path], learn: bool) -> T5Batches | LlamaBatches:
    """Open token files as batches; with `learn` also the instruction pairs."""
    if args.architecture == "llama":
        pool = PackedPairs(args.packed, args.seed, LLAMA_LENGTH - 34, 32) if learn else None
        return LlamaBatches(corpus=PackedTokens(files, LLAMA_LENGTH, args.seed), pairs=pool, rows=args.rows // 2)
    noise = SpanCorruption()
    shape = T5Batches.prompt_length, T5Batches.answer_length
    pool = PackedPairs(args.packed, args.seed, shape[0] - 1, shape[1] - 1) if learn else None
    corpus = PackedTokens(files, noise.window, args.seed)
    return T5Batches(corpus=corpus, pairs=pool, noise=noise, rows=args.rows, seed=args.seed)


def train(args: argparse.Namespace) -> None:
    """Begin or go on with a run."""
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    vocabulary = load(args.packed).get_vocab_size()
    model = build(args.architecture, args.seed, vocabulary).to(args.device)
    args.run.mkdir(parents=True, exist_ok=True)
    machine = torch.cuda.get_device_name() if model.device.type == "cuda" else f"CPU, {args.threads} thread(s)"
    write_json(
        args.run / "run.json",
        {
            "architecture": args.architecture,
            "packed": str(args.packed.resolve()),
            "machine": machine,
            "rows": args.rows,
            "rate": args.rate,
            "seed": args.seed,
            "vocabulary": vocabulary,
            "torch": torch.__version__,
        },
    )
    settings = Settings(rate=args.rate, save_seconds=args.save_seconds, compiled=not args.eager, seed=args.seed)
    held_out = batches(args, [args.packed / "valid.npy"], learn=False)
    files = sorted(args.packed.glob("train-*.npy"))
    # The budget in seconds counts from the first start, which a run that goes on has in its checkpoint.
    budget = Budget(unit="tokens", total=args.tokens or 1, decay=args.decay)
    run = Run(args.run, model, batches(args, files, learn=True), held_out, budget, settings)
    if args.until:
        end = datetime.fromisoformat(args.until).replace(tzinfo=UTC).timestamp()
        run.budget = Budget(unit="seconds", total=end - run.progress.began, decay=args.decay)
    began = time.monotonic()
    progress = run(session_seconds=args.session_seconds)
    print(f"step {progress.step}, {progress.tokens:,} tokens, {progress.curve[-1]}, {time.monotonic() - began:.0f} s")


def parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    root = argparse.ArgumentParser(prog="python -m scripts.pretrain", description=__doc__)
    commands = root.add_subparsers(required=True)
    one = commands.add_parser("pack", help="turn a corpus folder into token files")
    one.add_argument("corpus", type=Path)
    one.add_argument("packed", type=Path)
    one.add_argument("--parts", type=int, default=None, help="training parts to use (all)")
    one.add_argument("--pair-parts", type=int, default=None, help="parts from which instruction pairs are made (all)")
    one.add_argument("--pairs-per-document", type=int, default=3)
    one.add_argument("--vocabulary", type=int, default=VOCABULARY)
    one.set_defaults(command=pack_corpus)
    two = commands.add_parser("train", help="begin or go on with a run")
    two.add_argument("architecture", choices=("t5", "llama"))
    two.add_argument("packed", type=Path)
    two.add_argument("run", type=Path)
    length = two.add_mutually_exclusive_group(required=True)
    length.add_argument("--tokens", type=float, help="budget in tokens")
    length.add_argument("--until", help="time (UTC) at which the decay ends, as 2030-01-01T18:00")
    two.add_argument("--decay", type=float, default=0.25, help="share of the budget that is decay")
    two.add_argument("--session-seconds", type=float, default=float("inf"), help="stop after this time, to go on later")
    two.add_argument("--save-seconds", type=float, default=240.0)
    two.add_argument("--rows", type=int, default=32, help="rows of about 256 tokens per batch")
    two.add_argument("--rate", type=float, default=3e-3)
    two.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    two.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    two.add_argument("--eager", action="store_true", help="do not compile")
    two.add_argument("--seed", type=int, default=0)
    two.set_defaults(command=train)
    three = commands.add_parser("export", help="write a model folder from the newest checkpoint")
    three.add_argument("run", type=Path)
    three.add_argument("target", type=Path)
    three.set_defaults(command=lambda args: print(json.dumps(export(args.run, args.target))))
    return root


if __name__ == "__main__":
    arguments = parser().parse_args()
    arguments.command(arguments)
