"""Pre-training from a small folder of text: what goes in comes out, and a stopped run goes on as if it had not been."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from gorp.errors import CheckpointError
from scripts.pretrain.__main__ import parser
from scripts.pretrain.batches import IGNORED, LlamaBatches, T5Batches, tokens_of
from scripts.pretrain.corpus import PackedTokens, documents
from scripts.pretrain.export import export
from scripts.pretrain.instructions import pairs
from scripts.pretrain.models import build
from scripts.pretrain.noise import SpanCorruption
from scripts.pretrain.objective import Objective
from scripts.pretrain.pairs import PackedPairs
from scripts.pretrain.reading import Reading
from scripts.pretrain.schedule import Budget
from scripts.pretrain.teacher import Teacher
from scripts.pretrain.tokenizer import (
    BLANK,
    BOS_ID,
    EOS_ID,
    FIRST_SENTINEL,
    NORMALIZER,
    PAD_ID,
    SENTINELS,
    for_model,
    load,
    train_tokenizer,
)
from scripts.pretrain.train import Run, Settings
from tests.scripts.conftest import article


@pytest.fixture(scope="module")
def tokenizer(folders: tuple[Path, Path]) -> Tokenizer:
    """The tokenizer of the small corpus."""
    return load(folders[1])


def small_run(architecture: str, folders: tuple[Path, Path], encoder: Path, folder: Path, budget: Budget) -> Run:
    """Make a run of a model of a few thousand weights."""
    packed = folders[1]
    train, valid = [packed / "train-0.npy"], [packed / "valid.npy"]
    teacher, tokenizer = Teacher(str(encoder)), load(packed)
    model = build(architecture, 0, teacher.model.config, tokenizer.get_vocab_size())
    if architecture == "t5":
        noise, pool = SpanCorruption(window=40), PackedPairs(packed, 0, 127, 15)
        batches = T5Batches(corpus=PackedTokens(train, 40, 0), pairs=pool, noise=noise, rows=2)
        held_out = replace(batches, corpus=PackedTokens(valid, 40, 0), pairs=None)
    else:
        batches = LlamaBatches(corpus=PackedTokens(train, 128, 0), pairs=PackedPairs(packed, 0, 94, 32), rows=2)
        held_out = replace(batches, corpus=PackedTokens(valid, 128, 0), pairs=None)
    settings = Settings(compiled=False, rate=5e-2, reading_shares=(0.3, 0.3), pair_shares=(0.4, 0.4))
    reading = Reading(packed, tokenizer, teacher, rows=2, seed=0, llama=architecture == "llama")
    return Run(folder, Objective(model, teacher.width), batches, held_out, reading, budget, settings)


@given(text=st.text())
def test_every_text_survives_but_for_case_accents_and_blanks(tokenizer: Tokenizer, text: str) -> None:
    def plain(text: str) -> list[str]:
        return NORMALIZER.normalize_str(text).replace(BLANK, " ").split()

    if not any(special in text for special in ("<pad>", "<s>", "</s>", "<extra_id_")):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert plain(tokenizer.decode(ids)) == plain(text)


def test_frequent_words_of_the_encoder_are_one_piece(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("The river,\nCastle 19 —", add_special_tokens=False).tokens
    assert tokens[:5] == ["▁the", "▁river", ",", "▁\n", "▁castle"]
    assert tokens[5:] == ["▁", "1", "9", "▁", "<0xE2>", "<0x80>", "<0x94>"]


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="A vocabulary of 300 tokens cannot hold"):
        train_tokenizer(["a"], Tokenizer(models.WordPiece({"[UNK]": 0})), 300)


def test_a_label_has_the_tokens_it_has_among_the_options(tokenizer: Tokenizer) -> None:
    options = tokenizer.encode("Option: World, Science or Technology \nText", add_special_tokens=False).tokens
    label = tokenizer.encode("Science or Technology", add_special_tokens=False).tokens
    assert any(options[at : at + len(label)] == label for at in range(len(options)))


def test_special_tokens_stand_where_the_architecture_wants_them(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode("the river", add_special_tokens=False).ids
    assert for_model(tokenizer, "t5", 64)("the river")["input_ids"] == [*plain, EOS_ID]
    assert for_model(tokenizer, "llama", 64)("the river")["input_ids"] == [BOS_ID, *plain]
    named = [tokenizer.token_to_id(name) for name in ("<pad>", "</s>", "<s>", *SENTINELS)]
    assert named == [PAD_ID, EOS_ID, BOS_ID, *range(FIRST_SENTINEL, FIRST_SENTINEL + 32)]


@given(seed=st.integers(0, 2**32), window=st.integers(8, 290), density=st.floats(0.05, 0.4))
def test_the_spans_put_back_give_the_window(seed: int, window: int, density: float) -> None:
    noise = SpanCorruption(window=window, density=density, mean_span=4.0)
    draw = np.random.default_rng(seed)
    tokens = draw.integers(FIRST_SENTINEL + 32, 8192, (3, window))
    inputs, targets = noise(tokens, draw)
    assert inputs.shape == (3, noise.input_length) and targets.shape == (3, noise.target_length)
    for row in range(3):
        is_sentinel = targets[row] < FIRST_SENTINEL + 32
        spans = np.split(targets[row], np.flatnonzero(is_sentinel))[1:-1]
        missing = {span[0]: span[1:] for span in spans}
        whole = [missing[token] if token < FIRST_SENTINEL + 32 else [token] for token in inputs[row, :-1]]
        assert inputs[row, -1] == targets[row, -1] == EOS_ID
        assert list(missing) == list(range(FIRST_SENTINEL, FIRST_SENTINEL + noise.spans))
        np.testing.assert_array_equal(np.concatenate(whole), tokens[row])


def test_more_spans_than_sentinels_are_refused() -> None:
    with pytest.raises(ValueError, match="33 spans per window, but 32 sentinels"):
        SpanCorruption(window=500, density=0.2, mean_span=3.0)


def test_a_pass_takes_every_window_once(folders: tuple[Path, Path]) -> None:
    files = [folders[1] / "train-0.npy", folders[1] / "valid.npy"]
    packed = PackedTokens(files, 50, seed=3)
    seen = sorted(tuple(packed.window(number)) for number in range(len(packed)))
    arrays = [np.load(file) for file in files]
    assert seen == sorted(tuple(array[at : at + 50]) for array in arrays for at in range(0, len(array) - 49, 50))
    assert tuple(packed.window(3)) == tuple(PackedTokens(files, 50, seed=3).window(3))


def test_documents_are_packed_with_an_end_each(folders: tuple[Path, Path], tokenizer: Tokenizer) -> None:
    texts = list(documents(folders[0] / "train-0.txt"))
    tokens = np.load(folders[1] / "train-0.npy")
    assert len(texts) == 63 and int((tokens == EOS_ID).sum()) == 63
    first = tokens[: int(np.flatnonzero(tokens == EOS_ID)[0])]
    assert tokenizer.decode(first.tolist()).split() == article(0).lower().split()


def test_the_answer_of_a_pair_is_among_its_options(folders: tuple[Path, Path]) -> None:
    made = list(pairs(documents(folders[0] / "train-0.txt"), seed=0, per_document=4))
    assert made == list(pairs(documents(folders[0] / "train-0.txt"), seed=0, per_document=4))
    asked = [(prompt, answer) for prompt, answer in made if prompt.endswith("\nAnswer:")]
    assert len(asked) > 100 and len({prompt.split("\n")[0].split("?")[0] for prompt, _ in asked}) >= 8
    for prompt, answer in asked:
        assert answer in prompt.split("\nOption: ")[1].split(" \n")[0].split(", ")


def test_packed_pairs_are_the_pairs(folders: tuple[Path, Path], tokenizer: Tokenizer) -> None:
    packed = PackedPairs(folders[1], 0, 400, 50)
    numbers = range(len(packed.bounds))
    read = {tuple(tokenizer.decode(part.tolist()) for part in packed.pair(number)) for number in numbers}
    written = set(pairs(documents(folders[0] / "train-0.txt"), seed=0, per_document=3))
    again = {tuple(tokenizer.decode(tokenizer.encode(part).ids) for part in pair) for pair in written}
    assert again < read and len(read - again) == 40


def test_llama_learns_only_completions_of_instructions(folders: tuple[Path, Path], tokenizer: Tokenizer) -> None:
    corpus = PackedTokens([folders[1] / "train-0.npy"], 256, 0)
    pool = PackedPairs(folders[1], 0, 222, 32)
    batch = LlamaBatches(corpus=corpus, pairs=pool, rows=1).instructions(0)
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    learned = labels != IGNORED
    torch.testing.assert_close(ids[learned], labels[learned])
    prompt, answer = pool.pair(0)
    assert ids[: len(prompt) + len(answer) + 2].tolist() == [BOS_ID, *prompt, *answer, EOS_ID]
    assert int(learned[: len(prompt) + len(answer) + 2].sum()) == len(answer) + 1
    assert tokens_of(batch) == int((ids != PAD_ID).sum())


def test_the_rate_rises_stays_and_falls() -> None:
    budget = Budget(unit="tokens", total=1000, decay=0.25, warmup_steps=10)
    assert budget.rate(0, 0) == pytest.approx(0.1)
    assert budget.rate(9, 100) == budget.rate(500, 750) == 1.0
    assert budget.rate(500, 875) == pytest.approx(0.5)
    assert budget.rate(500, 1000) == 0.0
    # Ended at 300 tokens: the decay is the last quarter of 400.
    early = budget.ended_early(300)
    assert early.total == pytest.approx(400) and early.rate(500, 350) == pytest.approx(0.5)
    assert budget.ended_early(900) == budget


@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    architecture: str, folders: tuple[Path, Path], encoder: Path, tmp_path: Path
) -> None:
    budget = Budget(unit="tokens", total=4000, warmup_steps=3)
    whole = small_run(architecture, folders, encoder, tmp_path / "whole", budget)
    whole(stop_at=6)
    first = small_run(architecture, folders, encoder, tmp_path / "parts", budget)
    first(stop_at=3)
    second = small_run(architecture, folders, encoder, tmp_path / "parts", budget)
    assert second.progress.step == 3
    second(stop_at=6)
    assert whole.progress.tokens == second.progress.tokens
    assert whole.progress.pairs_batches == second.progress.pairs_batches > 0
    assert whole.progress.reading_batches == second.progress.reading_batches > 0
    for (name, left), right in zip(whole.objective.named_parameters(), second.objective.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, msg=name)


def test_a_run_learns_and_ends_at_its_budget(folders: tuple[Path, Path], encoder: Path, tmp_path: Path) -> None:
    run = small_run("llama", folders, encoder, tmp_path, Budget(unit="tokens", total=30_000, warmup_steps=5))
    run(stop_at=0)
    progress = run()
    assert 30_000 <= progress.tokens < 30_000 + 2 * 128
    assert progress.curve[-1]["loss"] < progress.curve[0]["loss"] - 1.0


def test_the_file_stop_begins_the_decay(folders: tuple[Path, Path], encoder: Path, tmp_path: Path) -> None:
    run = small_run("t5", folders, encoder, tmp_path, Budget(unit="tokens", total=1e9, warmup_steps=1))
    run(stop_at=6)
    spent = run.progress.tokens
    (tmp_path / "STOP").touch()
    run(stop_at=7)
    resumed = small_run("t5", folders, encoder, tmp_path, Budget(unit="tokens", total=1e9, warmup_steps=1))
    progress = resumed()
    assert not (tmp_path / "STOP").exists()
    assert resumed.budget.total == pytest.approx(spent / 0.75)
    assert spent / 0.75 <= progress.tokens < spent / 0.75 + 400


@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_an_export_is_read_by_plain_transformers_and_learns_to_stop(
    architecture: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    run, target = tmp_path / "run", tmp_path / f"gorp-tiny-{architecture}"
    command = ["train", architecture, str(folders[1]), str(run), "--tokens", "1", "--rows", "2", "--eager"]
    arguments = parser().parse_args([*command, "--threads", "1", "--device", "cpu"])
    arguments.command(arguments)
    sessions = json.loads((run / "run.json").read_text())["sessions"]
    assert [(session["tokens"], session["budget"]) for session in sessions] == [(0, "1 tokens")]
    export(run, target)
    loader = AutoModelForSeq2SeqLM if architecture == "t5" else AutoModelForCausalLM
    model = loader.from_pretrained(target, dtype=torch.float32)
    assert model.config._attn_implementation == "eager"
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert model.num_parameters() < 16e6
    assert f"# {target.name}\n" in (target / "README.md").read_text()
    assert tokenizer.decode(tokenizer("Höhe 😀")["input_ids"], skip_special_tokens=True) == "hohe 😀"

    prompt = tokenizer("Option: river, castle \nthe river\nAnswer:", return_tensors="pt")
    answer = tokenizer("river", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    labels = torch.tensor([answer])
    if architecture == "llama":
        ids = torch.cat([prompt["input_ids"], labels], dim=1)
        batch = {"input_ids": ids, "labels": torch.cat([torch.full_like(prompt["input_ids"], IGNORED), labels], dim=1)}
    else:
        batch = {**prompt, "labels": labels}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    written = model.eval().generate(**prompt, do_sample=False)[0]
    written = written[1:] if architecture == "t5" else written[prompt["input_ids"].shape[1] :]
    assert written.tolist() == answer


def test_an_export_before_the_first_checkpoint_is_refused(
    folders: tuple[Path, Path], encoder: Path, tmp_path: Path
) -> None:
    told = {"architecture": "t5", "packed": str(folders[1]), "seed": 0, "encoder": {"source": str(encoder)}}
    (tmp_path / "run.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"holds no checkpoint\.safetensors"):
        export(tmp_path, tmp_path / "model")
