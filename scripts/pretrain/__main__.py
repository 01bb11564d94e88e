"""Command line of the pre-training; see the package for how to call it."""

import argparse
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from gorp.storage import read_json, write_json
from scripts.pretrain import checkpoint, fill, finetune
from scripts.pretrain.batches import LlamaBatches, T5Batches
from scripts.pretrain.corpus import PackedTokens, pack, parts, sample
from scripts.pretrain.described import described
from scripts.pretrain.export import export
from scripts.pretrain.instructions import pairs
from scripts.pretrain.models import build, taken
from scripts.pretrain.noise import SpanCorruption
from scripts.pretrain.objective import Objective
from scripts.pretrain.pairs import PackedPairs, pack_pairs
from scripts.pretrain.reading import SHAPES, Reading, pack_passages, passages, whole_words
from scripts.pretrain.schedule import Budget
from scripts.pretrain.teacher import Teacher, origin
from scripts.pretrain.tokenizer import VOCABULARY, load, train_tokenizer
from scripts.pretrain.train import Run, Settings
from scripts.pretrain.transplant import into_llama, into_t5


LLAMA_LENGTH = 256
"""Tokens of a row of the Llama."""

SAMPLE = 0.1
"""Share of the documents that the tokenizer's counts come from."""

SHARES = {"t5": ((0.7, 0.4), (0.15, 0.4)), "llama": ((0.6, 0.35), (0.25, 0.5))}
"""Share of batches read with the teacher, and of instructions, in the first and second half; the rest is text. The
Llama learns to read from instructions too: only there does the end of a row ask for the whole of it."""

MEDIAN_TEXTS = 100
"""Unchanged passages over which the transplanting takes its medians."""


def pack_corpus(args: argparse.Namespace) -> None:
    """Write tokenizer, token files, passages and instruction pairs of a corpus folder."""
    torch.set_num_threads(args.threads)
    target: Path = args.packed
    target.mkdir(parents=True, exist_ok=True)
    files = parts(args.corpus)[: args.parts]
    teacher = Teacher(args.encoder)
    encoder: Tokenizer = teacher.tokenizer.backend_tokenizer
    share = 1.0 if len(files) == 1 else SAMPLE
    chosen = (text for seed, file in enumerate(files) for text in sample(file, share, seed))
    train_tokenizer(chosen, encoder, args.vocabulary).save(str(target / "tokenizer.json"))
    tokenizer, words = load(target), whole_words(encoder)
    # Words that the model has to read in pieces come twice as often.
    put_in = words + [word for word in words if len(tokenizer.encode(word).ids) > 1]
    counts = {}
    for file in [args.corpus / "valid.txt", *files]:
        counts[file.name] = pack(file, tokenizer, target / f"{file.name.split('.')[0]}.npy")
        print(f"{file.name}: {counts[file.name]:,} tokens", flush=True)

    def all_passages(offset: int) -> Iterator[tuple[str, bool]]:
        for seed, file in enumerate(files):
            yield from passages(sample(file, args.passage_share, offset + seed), put_in, offset + seed)

    counts["passages"] = pack_passages(all_passages(0), tokenizer, target)
    print(f"{counts['passages']:,} passages", flush=True)

    def all_pairs() -> Iterator[tuple[str, str]]:
        texts = (text for text, _ in all_passages(1000))
        yield from described(islice(texts, args.described), words, teacher, seed=0)
        for seed, file in enumerate(files):
            yield from pairs(sample(file, args.pair_share, seed), seed, args.pairs_per_document)

    counts["pairs"] = pack_pairs(all_pairs(), tokenizer, target)
    print(f"{counts['pairs']:,} instruction pairs", flush=True)
    write_json(target / "counts.json", counts)
    write_json(target / "encoder.json", {"source": args.encoder, **origin(args.encoder)})


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
    """Make the model with the encoder's weights in it."""
    teacher = Teacher(source, dtype=torch.float32)
    model = build(args.architecture, args.seed, teacher.model.config, tokenizer.get_vocab_size())
    objective = Objective(model, teacher.width)
    if (args.run / checkpoint.FILE).exists():
        return objective
    clean = [number for number in reading.pools[1].tolist() if reading.clean[number]][:MEDIAN_TEXTS]
    layers, texts = taken(args.architecture, teacher.model.config), [reading.text(number) for number in clean]
    with torch.no_grad():
        if args.architecture == "t5":
            objective.shift.copy_(into_t5(model, teacher, tokenizer, layers, texts))
        else:
            for own, value in zip(
                (objective.scale, objective.shift), into_llama(model, teacher, tokenizer, layers, texts), strict=True
            ):
                own.copy_(value)
    return objective


def train(args: argparse.Namespace) -> None:
    """Begin or go on with a run."""
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    tokenizer, source = load(args.packed), read_json(args.packed / "encoder.json")["source"]
    args.run.mkdir(parents=True, exist_ok=True)
    llama = args.architecture == "llama"
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
        seed=args.seed,
    )
    # The budget in seconds counts from the first start, which a run that goes on has in its checkpoint.
    budget = Budget(unit="tokens", total=args.tokens or 1, decay=args.decay)
    run = Run(args.run, objective, batches(args, learn=True), batches(args, learn=False), reading, budget, settings)
    if args.until:
        end = datetime.fromisoformat(args.until).replace(tzinfo=UTC).timestamp()
        run.budget = Budget(unit="seconds", total=end - run.progress.began, decay=args.decay)
    write_json(args.run / "run.json", told(args, run))
    began = time.monotonic()
    progress = run(session_seconds=args.session_seconds)
    print(f"step {progress.step}, {progress.tokens:,} tokens, {progress.curve[-1]}, {time.monotonic() - began:.0f} s")


def told(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Say what `run.json` holds: what was asked, and for every session from which token on it was asked."""
    path = args.run / "run.json"
    earlier = read_json(path)["sessions"] if path.exists() else []
    session = {
        "tokens": run.progress.tokens,
        "budget": f"until {args.until}" if args.until else f"{args.tokens:,.0f} tokens",
        "rate": args.rate,
        "decay": args.decay,
    }
    return {
        "architecture": args.architecture,
        "packed": str(args.packed.resolve()),
        "machine": torch.cuda.get_device_name() if run.device.type == "cuda" else f"CPU, {args.threads} thread(s)",
        "rows": run.train.rows,
        "seed": args.seed,
        "vocabulary": load(args.packed).get_vocab_size(),
        "torch": torch.__version__,
        "encoder": read_json(args.packed / "encoder.json"),
        "layers": taken(args.architecture, run.reading.teacher.model.config),
        "reading_shares": run.settings.reading_shares,
        "pair_shares": run.settings.pair_shares,
        "sessions": [*(entry for entry in earlier if entry["tokens"] < session["tokens"]), session],
    }


def parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    root = argparse.ArgumentParser(prog="python -m scripts.pretrain", description=__doc__)
    commands = root.add_subparsers(required=True)
    one = commands.add_parser("pack", help="turn a corpus folder into tokenizer, token files, passages and pairs")
    one.add_argument("corpus", type=Path)
    one.add_argument("packed", type=Path)
    one.add_argument(
        "--encoder", required=True, help="folder of a BERT encoder, or an installed package that holds one"
    )
    one.add_argument("--parts", type=int, default=None, help="training parts to use (all)")
    one.add_argument("--passage-share", type=float, default=0.3, help="documents that passages are cut from")
    one.add_argument("--described", type=int, default=60_000, help="instruction pairs whose answer is the encoder's")
    one.add_argument("--pair-share", type=float, default=0.3, help="documents that other pairs are made from")
    one.add_argument("--pairs-per-document", type=int, default=3)
    one.add_argument("--vocabulary", type=int, default=VOCABULARY)
    one.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    one.set_defaults(command=pack_corpus)
    two = commands.add_parser("train", help="begin or go on with a run")
    two.add_argument("architecture", choices=("t5", "llama"))
    two.add_argument("packed", type=Path)
    two.add_argument("run", type=Path)
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
