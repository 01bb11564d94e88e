"""Pre-training beside a public encoder, here a random one: what it says is kept token by token and learned."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaForCausalLM, PreTrainedTokenizerFast, T5ForConditionalGeneration

from scripts.pretrain.__main__ import parser
from scripts.pretrain.batches import LlamaBatches, T5Batches
from scripts.pretrain.card import model_card
from scripts.pretrain.corpus import PackedTokens
from scripts.pretrain.embeddings import FREQUENCY, NOISE, taught_embeddings
from scripts.pretrain.models import llama_config, t5_config
from scripts.pretrain.noise import SpanCorruption
from scripts.pretrain.objective import Objective
from scripts.pretrain.schedule import Budget
from scripts.pretrain.targets import Targets, write_targets
from scripts.pretrain.teacher import Teacher, locate, origin
from scripts.pretrain.tokenizer import load
from scripts.pretrain.train import Run, Settings


VOCABULARY = 400
WORDS = "river mountain castle village harbour bishop painter railway winter market engine garden soldier".split()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of one layer and 48 coordinates, which knows letters and a dozen words."""
    folder = tmp_path_factory.mktemp("teacher") / "encoder"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *"abcdefghijklmnopqrstuvwxyz0123456789.,"]
    names += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names), hidden_size=48, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small packed corpus."""
    root = tmp_path_factory.mktemp("taught")
    draw = np.random.default_rng(0)
    articles = [
        f"The {word} number {number}\n\n"
        + " ".join(
            f"The {word} of the {' and the '.join(draw.choice(WORDS, 3))} is {draw.integers(99)} years old."
            for _ in range(12)
        )
        for number, word in enumerate(WORDS * 4)
    ]
    (root / "corpus").mkdir()
    for name, texts in (("train-0.txt", articles[6:]), ("valid.txt", articles[:6])):
        (root / "corpus" / name).write_text("\n<|endoftext|>\n".join(texts))
    arguments = parser().parse_args(
        ["pack", str(root / "corpus"), str(root / "packed"), "--vocabulary", str(VOCABULARY)]
    )
    arguments.command(arguments)
    return root / "packed"


@pytest.fixture(scope="module")
def targets(packed: Path, teacher: Path) -> Targets:
    """What the encoder says of the corpus."""
    write_targets(packed, load(packed), str(teacher), part=0, seconds=float("inf"))
    return Targets(packed)


def test_the_origin_of_the_vectors_is_named(teacher: Path) -> None:
    told = origin(str(teacher))
    assert (told["name"], told["license"], len(told["sha256"])) == ("encoder", "apache-2.0", 64)
    with pytest.raises(FileNotFoundError, match="neither a folder nor an installed package"):
        locate("no_such_encoder")


def test_segments_of_a_stretch_add_up_to_its_tokens(teacher: Path) -> None:
    reader = Teacher(str(teacher))
    stretch = [" the river and the cas", "tle of the bishop", "", " 1984."]
    means = torch.from_numpy(reader.segments([stretch, ["winter"] * 4])).float()
    encoded = reader.tokenizer("".join(stretch), return_tensors="pt")
    hidden = reader.model(**encoded).last_hidden_state[0, 1:-1].float()
    # "castle" begins in the first segment: t-h-e river a-n-d t-h-e castle | o-f t-h-e bishop | | number, dot.
    counts = [11, 6, 0, 2]
    assert sum(counts) == len(hidden)
    for mean, part in zip(means[0], hidden.split(counts), strict=True):
        torch.testing.assert_close(mean, part.mean(0) if len(part) else torch.zeros(48), rtol=2e-2, atol=2e-2)


def test_pieces_alike_to_the_teacher_begin_alike(packed: Path, teacher: Path) -> None:
    tokenizer = load(packed)
    size = tokenizer.get_vocab_size()
    counts = np.arange(size)
    made = taught_embeddings(tokenizer, Teacher(str(teacher)), counts, 16, seed=0)
    again = taught_embeddings(tokenizer, Teacher(str(teacher)), counts, 16, seed=0)
    torch.testing.assert_close(made, again, rtol=0, atol=0)
    assert made.shape == (size, 16)
    assert made[:, :-1].std().item() == pytest.approx(1.0, abs=0.1)
    assert made[:, -1].std().item() == pytest.approx(FREQUENCY, rel=1e-3)
    assert made[10, -1] < made[300, -1]
    upper, lower = (tokenizer.token_to_id(letter) for letter in "Th")
    same = tokenizer.token_to_id("t")
    close, far = (torch.cosine_similarity(made[upper, :-1], made[other, :-1], dim=0) for other in (same, lower))
    assert close > 1 - 4 * NOISE**2 > far
    assert not torch.equal(made[upper], made[same])
    with pytest.raises(ValueError, match="48 wide, the model 64"):
        taught_embeddings(tokenizer, Teacher(str(teacher)), counts, 64, seed=0)


def test_targets_written_in_two_goes_are_those_of_one(packed: Path, teacher: Path, targets: Targets) -> None:
    whole = np.load(packed / "teacher-0.npy")
    tokens = len(np.load(packed / "train-0.npy"))
    assert targets.covered(0) == len(whole) * 256 == tokens // 256 * 256 and targets.covered(1) == 0
    (packed / "teacher.json").unlink()
    write_targets(packed, load(packed), str(teacher), part=0, seconds=1e-9, batch=3)
    done = write_targets(packed, load(packed), str(teacher), part=0, seconds=float("inf"), batch=3)
    assert done == targets.covered(0)
    np.testing.assert_allclose(np.load(packed / "teacher-0.npy"), whole, atol=2e-2)


def test_targets_are_centred_with_length_one(targets: Targets) -> None:
    every = targets.window(0, 0, targets.covered(0))
    said = every[~every.isnan().any(1)]
    assert len(said) > len(every) / 2
    torch.testing.assert_close(said.mean(0), torch.zeros(48), rtol=0, atol=1e-4)
    assert said.square().sum(1).mean().item() == pytest.approx(1.0, rel=1e-3)
    torch.testing.assert_close(targets.window(0, 32, 64), every[2:6], equal_nan=True)


def test_targets_before_the_teacher_has_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no teacher\.json; run the command `teach`"):
        Targets(tmp_path)


def taught_run(architecture: str, packed: Path, targets: Targets, folder: Path, weight: float = 2.0) -> Run:
    """Make a run of a model of a few thousand weights, with a teacher."""
    torch.manual_seed(0)
    train, held_out = [packed / "train-0.npy"], PackedTokens([packed / "valid.npy"], 48, 0)
    corpus = PackedTokens(train, 48, 0, [192])
    if architecture == "t5":
        config = t5_config(VOCABULARY)
        config.update({"d_model": 32, "d_kv": 16, "d_ff": 48, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1})
        model = T5ForConditionalGeneration(config)
        batches = T5Batches(corpus=corpus, pairs=None, noise=SpanCorruption(window=48), rows=4, targets=targets)
    else:
        config = llama_config(VOCABULARY)
        config.update({"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8})
        model = LlamaForCausalLM(config)
        batches = LlamaBatches(corpus=corpus, pairs=None, rows=4, targets=targets)
    settings = Settings(rate=2e-2, compiled=False)
    objective = Objective(model, targets.width, weight)
    measured = replace(batches, corpus=held_out, targets=None)
    return Run(folder, objective, batches, measured, Budget(unit="tokens", total=20_000, warmup_steps=3), settings)


@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_the_distance_is_the_mean_square_over_what_was_said(
    architecture: str, packed: Path, targets: Targets, tmp_path: Path
) -> None:
    run = taught_run(architecture, packed, targets, tmp_path)
    batch = run.train.text(0)
    batch["targets"][0, 1] = float("nan")
    said = batch["targets"][~batch["targets"].isnan().any(2)]
    loss, distance = run.objective(**batch)
    # The head is zero at birth.
    assert distance.item() == pytest.approx(said.square().sum(1).mean().item(), rel=1e-5)
    plain = run.objective.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    assert loss.item() == pytest.approx(plain.item() + 2 * distance.item(), rel=1e-5)
    # A teacher that says what the student thinks is at no distance.
    torch.nn.init.normal_(run.objective.head.weight)
    model, mask = run.objective.model, batch["places"][:, :, None] == torch.arange(3)
    encoder = model.get_encoder() if architecture == "t5" else model.model
    hidden = encoder(input_ids=batch["input_ids"]).last_hidden_state
    means = (mask.float().mT @ hidden) / mask.sum(1)[:, :, None].clamp(min=1) / 32**0.5
    batch["targets"] = (means @ run.objective.head.weight.mT).detach()
    assert run.objective(**batch)[1].item() == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_a_taught_run_comes_nearer_to_its_teacher_and_goes_on_where_it_was(
    architecture: str, packed: Path, targets: Targets, tmp_path: Path
) -> None:
    whole = taught_run(architecture, packed, targets, tmp_path / "whole")

    def distance() -> float:
        with torch.no_grad():
            return sum(whole.objective(**whole.train.text(number))[1].item() for number in range(10)) / 10

    before = distance()
    whole(stop_at=40)
    assert distance() < 0.9 * before
    taught_run(architecture, packed, targets, tmp_path / "parts")(stop_at=15)
    second = taught_run(architecture, packed, targets, tmp_path / "parts")
    second(stop_at=40)
    for (name, left), right in zip(whole.objective.named_parameters(), second.objective.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, msg=name)


def test_the_card_tells_shape_origin_and_a_tenth(teacher: Path) -> None:
    config = t5_config(VOCABULARY)
    config.update({"num_layers": 7, "d_model": 48})
    curve = [
        {"step": step, "tokens": tokens, "loss": loss, "perplexity": np.exp(loss)}
        for step, tokens, loss in ((0, 0, 6.0), (1, 200, 5.0), (2, 1000, 4.0))
    ]
    session = {"tokens": 0, "budget": "1,000 tokens", "rate": 1e-3, "embedding_rate": 2e-3}
    told = {"architecture": "t5", "machine": "CPU", "torch": "2", "rows": 2, "seed": 0, "vocabulary": VOCABULARY}
    told |= {"text_tokens": 700, "sessions": [session | {"decay": 0.5, "pair_share": 0.35}]}
    alone = model_card("a", told, curve, config, 1000, {"train-0": 1000})
    assert "7 encoder and 3 decoder layers of width 48" in alone
    assert "trained from random weights" in alone and "1,000 tokens of English" in alone and "first 700" in alone
    assert "| 0 | 1,000 tokens | 0.001 | 0.002 | 50% | 35% |" in alone
    # A tenth is 100 tokens, half way between 6.0 and 5.0.
    assert f"perplexity is {np.exp(4):.0f}; at a tenth of the tokens" in alone and f"it was {np.exp(5.5):.0f}." in alone
    taught = model_card("a", told | {"embeddings_from": origin(str(teacher))}, curve, config, 1000, {"train-0": 1000})
    assert "one public encoder, `encoder` (licence: apache-2.0" in taught and "random weights" not in taught
