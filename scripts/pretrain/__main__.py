"""Command line of the pre-training; see the package for how to call it."""

import argparse
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from gorp.storage import read_json, write_json
from scripts.pretrain import checkpoint
from scripts.pretrain.batches import LlamaBatches, T5Batches
from scripts.pretrain.corpus import PackedTokens, documents, pack, parts, sample
from scripts.pretrain.embeddings import taught_embeddings
from scripts.pretrain.export import export
from scripts.pretrain.finetune import add_arguments
from scripts.pretrain.instructions import pairs
from scripts.pretrain.models import EMBEDDING_DEVIATION, build
from scripts.pretrain.noise import SpanCorruption
from scripts.pretrain.objective import Objective
from scripts.pretrain.pairs import PackedPairs, pack_pairs
from scripts.pretrain.schedule import Budget
from scripts.pretrain.targets import Targets, write_targets
from scripts.pretrain.teacher import Teacher, origin
from scripts.pretrain.tokenizer import VOCABULARY, load, train_tokenizer
from scripts.pretrain.train import Run, Settings


LLAMA_LENGTH = 512
"""Tokens of a row of the Llama."""

TAUGHT_RATE = 2e-3
"""Peak learning rate of embeddings that come from an encoder, over their standard deviation."""


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


def teach(args: argparse.Namespace) -> None:
    """Write what the teacher makes of one part."""
    torch.set_num_threads(args.threads)
    tokens = write_targets(args.packed, load(args.packed), args.teacher, args.part, args.seconds)
    print(f"part {args.part}: {tokens:,} tokens have targets")


def batches(args: argparse.Namespace, targets: Targets | None, learn: bool) -> T5Batches | LlamaBatches:
    """Open token files as batches: those to learn from, of which a teacher uses what it has read, or the held-out."""
    files = [args.packed / "valid.npy"]
    if learn:
        files = [args.packed / f"train-{part}.npy" for part in range(len(list(args.packed.glob("train-*.npy"))))]
    most = [targets.covered(part) for part in range(len(files))] if targets else None
    if args.architecture == "llama":
        pool = PackedPairs(args.packed, args.seed, LLAMA_LENGTH - 34, 32) if learn else None
        corpus = PackedTokens(files, LLAMA_LENGTH, args.seed, most)
        return LlamaBatches(corpus=corpus, pairs=pool, rows=args.rows // 2, targets=targets)
    noise = SpanCorruption()
    shape = T5Batches.prompt_length, T5Batches.answer_length
    pool = PackedPairs(args.packed, args.seed, shape[0] - 1, shape[1] - 1) if learn else None
    corpus = PackedTokens(files, noise.window, args.seed, most)
    return T5Batches(corpus=corpus, pairs=pool, noise=noise, rows=args.rows, seed=args.seed, targets=targets)


def begin(args: argparse.Namespace, vocabulary: int) -> tuple[PreTrainedModel, float]:
    """Make the model and choose the peak learning rate of its embeddings, which is lower where they were taught."""
    model = build(args.architecture, args.seed, vocabulary)
    if not args.embeddings_from:
        return model, Settings.embedding_rate
    deviation = EMBEDDING_DEVIATION[args.architecture]
    if not (args.run / checkpoint.FILE).exists():
        counts = np.bincount(np.load(args.packed / "train-0.npy"), minlength=vocabulary)
        teacher = Teacher(args.embeddings_from)
        taught = taught_embeddings(load(args.packed), teacher, counts, model.config.hidden_size, args.seed)
        model.get_input_embeddings().load_state_dict({"weight": deviation * taught})
    return model, TAUGHT_RATE * deviation


def train(args: argparse.Namespace) -> None:
    """Begin or go on with a run."""
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    vocabulary = load(args.packed).get_vocab_size()
    args.run.mkdir(parents=True, exist_ok=True)
    model, embedding_rate = begin(args, vocabulary)
    model = model.to(args.device)
    targets = Targets(args.packed) if args.teacher_weight else None
    settings = Settings(
        rate=args.rate,
        embedding_rate=embedding_rate,
        pair_shares=(Settings.pair_shares[0], args.pair_share),
        save_seconds=args.save_seconds,
        compiled=not args.eager,
        seed=args.seed,
    )
    held_out = batches(args, None, learn=False)
    # The budget in seconds counts from the first start, which a run that goes on has in its checkpoint.
    budget = Budget(unit="tokens", total=args.tokens or 1, decay=args.decay)
    objective = Objective(model, targets.width if targets else 0, args.teacher_weight)
    run = Run(args.run, objective, batches(args, targets, learn=True), held_out, budget, settings)
    if args.until:
        end = datetime.fromisoformat(args.until).replace(tzinfo=UTC).timestamp()
        run.budget = Budget(unit="seconds", total=end - run.progress.began, decay=args.decay)
    write_json(args.run / "run.json", told(args, run, targets))
    began = time.monotonic()
    progress = run(session_seconds=args.session_seconds)
    print(f"step {progress.step}, {progress.tokens:,} tokens, {progress.curve[-1]}, {time.monotonic() - began:.0f} s")


def told(args: argparse.Namespace, run: Run, targets: Targets | None) -> dict[str, Any]:
    """Say what `run.json` holds: what was asked, and for every session from which token on it was asked."""
    path = args.run / "run.json"
    earlier = read_json(path)["sessions"] if path.exists() else []
    session = {
        "tokens": run.progress.tokens,
        "budget": f"until {args.until}" if args.until else f"{args.tokens:,.0f} tokens",
        "rate": args.rate,
        "embedding_rate": run.settings.embedding_rate,
        "decay": args.decay,
        "pair_share": args.pair_share,
    }
    cuda = run.device.type == "cuda"
    corpus = run.train.corpus
    return {
        "architecture": args.architecture,
        "packed": str(args.packed.resolve()),
        "machine": torch.cuda.get_device_name() if cuda else f"CPU, {args.threads} thread(s)",
        "rows": run.train.rows,
        "seed": args.seed,
        "vocabulary": load(args.packed).get_vocab_size(),
        "torch": torch.__version__,
        "text_tokens": len(corpus) * corpus.length,
        "embeddings_from": origin(args.embeddings_from) if args.embeddings_from else None,
        "teacher": targets.teacher if targets else None,
        "teacher_weight": args.teacher_weight,
        "sessions": [*(entry for entry in earlier if entry["tokens"] < session["tokens"]), session],
    }


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
    also = commands.add_parser("teach", help="let a public encoder read token files; call it again to go on")
    also.add_argument("packed", type=Path)
    also.add_argument("teacher", help="folder of an encoder, or an installed package that holds one")
    also.add_argument("--part", type=int, default=0)
    also.add_argument("--seconds", type=float, default=float("inf"), help="time to spend (until the part is read)")
    also.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    also.set_defaults(command=teach)
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
    two.add_argument("--pair-share", type=float, default=0.35, help="instruction batches in the budget's second half")
    two.add_argument("--embeddings-from", metavar="ENCODER", help="begin with embeddings of this folder or package")
    two.add_argument("--teacher-weight", type=float, default=0.0, help="weight of what `teach` wrote (0: not used)")
    two.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    two.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    two.add_argument("--eager", action="store_true", help="do not compile")
    two.add_argument("--seed", type=int, default=0)
    two.set_defaults(command=train)
    three = commands.add_parser("export", help="write a model folder from the newest checkpoint")
    three.add_argument("run", type=Path)
    three.add_argument("target", type=Path)
    three.set_defaults(command=lambda args: print(json.dumps(export(args.run, args.target))))
    add_arguments(commands.add_parser("finetune", help="measure what a model folder learns, task by task"))
    return root


if __name__ == "__main__":
    arguments = parser().parse_args()
    arguments.command(arguments)
