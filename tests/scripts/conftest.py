"""A small corpus, a small random encoder, and what `pack` makes of both."""

import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from scripts.pretrain.__main__ import parser


VOCABULARY = 512
TOPICS = "river mountain castle village harbour bishop painter railway winter market engine garden soldier".split()
OTHERS = (
    "the of and was in near that is called here where behind number years old thing article dialogue dictionary story "
    "manual noun verb adjective adverb which word what kind text following title paragraph sentence first second "
    "follow yes no right wrong correct incorrect option answer choose one from options left out goes with two three "
    "good bad happy sad quick slow bright dark warm cold early late north south"
).split()


def article(number: int) -> str:
    """Write an article of a dozen sentences about one word."""
    draw = random.Random(number)
    topic = TOPICS[number % len(TOPICS)]
    rows = [
        f"The {topic} of {draw.choice(TOPICS)} was {draw.choice(TOPICS)} in {1800 + draw.randrange(99)} near the "
        f"{draw.choice(TOPICS)}."
        for _ in range(12)
    ]
    return f"{topic.title()} number {number}\n\n{' '.join(rows)}"


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of two layers and 48 coordinates with its tokenizer."""
    folder = tmp_path_factory.mktemp("teacher") / "encoder"
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TOPICS, *OTHERS, *letters, *"0123456789.,:?()_", "ing"]
    names += [f"##{letter}" for letter in (*letters, "ing")]
    tokenizer = Tokenizer(models.WordPiece({name: at for at, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.1,
    )
    model = BertModel(config)
    # Absolute positions are what transplanting leaves out.
    torch.nn.init.zeros_(model.embeddings.position_embeddings.weight)
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


@pytest.fixture(scope="session")
def folders(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus folder of articles, a dialogue and a dictionary page, and what `pack` makes of it."""
    root = tmp_path_factory.mktemp("pretrain")
    corpus, packed = root / "corpus", root / "packed"
    corpus.mkdir()
    page = "\n".join(f"{word} (noun): a thing that is called {word} here." for word in TOPICS)
    talk = "\n".join(f"User: Where is the {word}?\nAssistant: Behind the {word}." for word in TOPICS)
    texts = [*(article(number) for number in range(60)), page, talk, "Höhe 😀 naïve"]
    end = "\n<|endoftext|>\n"
    (corpus / "train-0.txt").write_text(end.join(texts) + end, encoding="utf-8")
    (corpus / "valid.txt").write_text(end.join(article(number) for number in range(100, 110)), encoding="utf-8")
    command = ["pack", str(corpus), str(packed), "--encoder", str(encoder), "--vocabulary", str(VOCABULARY)]
    shares = ["--passage-share", "1", "--pair-share", "1", "--described", "40", "--threads", "1"]
    arguments = parser().parse_args([*command, *shares])
    arguments.command(arguments)
    return corpus, packed
