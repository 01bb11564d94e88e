"""From a corpus folder to a packed one: tokens, passages, what a larger encoder says of them, instructions."""

import argparse
import os
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from gorp.storage import read_json, write_json
from scripts.pretrain.corpus import pack, parts, sample
from scripts.pretrain.described import described
from scripts.pretrain.instructions import pairs
from scripts.pretrain.kept import TOLD, Kept, keep, word_ends
from scripts.pretrain.pairs import pack_pairs
from scripts.pretrain.reading import all_texts, pack_passages, passages, whole_words
from scripts.pretrain.schedule import timestamp
from scripts.pretrain.teacher import Teacher, origin
from scripts.pretrain.tokenizer import VOCABULARY, load, train_tokenizer


SAMPLE = 0.1
"""Share of the documents that the tokenizer's counts come from."""


def pack_corpus(args: argparse.Namespace) -> None:
    """Write tokenizer, token files and passages of a corpus folder."""
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
    counts = {}
    for file in [args.corpus / "valid.txt", *files]:
        counts[file.name] = pack(file, tokenizer, target / f"{file.name.split('.')[0]}.npy")
        print(f"{file.name}: {counts[file.name]:,} tokens", flush=True)
    # Words that the model has to read in pieces come twice as often.
    put_in = words + [word for word in words if len(tokenizer.encode(word).ids) > 1]
    texts = (
        one for seed, file in enumerate(files) for one in passages(sample(file, args.passage_share, seed), put_in, seed)
    )
    counts["passages"] = pack_passages(texts, tokenizer, target)
    print(f"{counts['passages']:,} passages", flush=True)
    write_json(target / "counts.json", counts)
    write_json(target / "encoder.json", {"source": args.encoder, **origin(args.encoder)})


def make_pairs(args: argparse.Namespace) -> None:
    """Write the instruction pairs of a packed folder, those by an encoder's vectors after what `read` kept."""
    torch.set_num_threads(args.threads)
    folder: Path = args.packed
    counts, texts = read_json(folder / "counts.json"), all_texts(folder)
    files = [file for file in parts(args.corpus) if file.name in counts]
    if (folder / TOLD).exists():
        kept = Kept(folder, word_ends(texts))
        teacher, numbers = Teacher(kept.told["source"], dtype=torch.float32), kept.numbers[: args.described].tolist()
        vectors = kept.texts(numbers)
    else:
        teacher = Teacher(read_json(folder / "encoder.json")["source"])
        numbers = np.random.default_rng(6).permutation(len(texts))[: args.described].tolist()
        vectors = teacher.texts([texts[number] for number in numbers])
    words = whole_words(teacher.tokenizer.backend_tokenizer)
    table = teacher.texts(words)
    made = chain(
        described([texts[number] for number in numbers], vectors, words, table, seed=0),
        *(pairs(sample(file, args.pair_share, seed), seed, args.pairs_per_document) for seed, file in enumerate(files)),
    )
    counts["pairs"] = pack_pairs(made, load(folder), folder)
    print(f"{counts['pairs']:,} instruction pairs", flush=True)
    write_json(folder / "counts.json", counts)


def read(args: argparse.Namespace) -> None:
    """Keep what an encoder says of the passages of a packed folder."""
    torch.set_num_threads(args.threads)
    keep(args.packed, all_texts(args.packed), args.encoder, timestamp(args.until) if args.until else float("inf"))


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command lines of `pack`, `read` and `pairs`."""
    one = commands.add_parser("pack", help="turn a corpus folder into tokenizer, token files and passages")
    one.add_argument("corpus", type=Path)
    one.add_argument("packed", type=Path)
    one.add_argument(
        "--encoder", required=True, help="folder of a BERT encoder, or an installed package that holds one"
    )
    one.add_argument("--parts", type=int, default=None, help="training parts to use (all)")
    one.add_argument("--passage-share", type=float, default=0.3, help="documents that passages are cut from")
    one.add_argument("--vocabulary", type=int, default=VOCABULARY)
    one.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    one.set_defaults(command=pack_corpus)
    asked = commands.add_parser("pairs", help="make the instructions of a packed folder, after what `read` kept")
    asked.add_argument("corpus", type=Path, help="as for pack")
    asked.add_argument("packed", type=Path)
    asked.add_argument("--described", type=int, default=60_000, help="pairs whose answer is an encoder's")
    asked.add_argument("--pair-share", type=float, default=0.3, help="documents that other pairs are made from")
    asked.add_argument("--pairs-per-document", type=int, default=3)
    asked.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    asked.set_defaults(command=make_pairs)
    reader = commands.add_parser("read", help="keep what a further, larger encoder says of the passages; go on with it")
    reader.add_argument("packed", type=Path)
    reader.add_argument("--encoder", required=True, help="as for pack")
    reader.add_argument("--until", help="time (UTC) at which to stop; all passages by default")
    reader.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    reader.set_defaults(command=read)
