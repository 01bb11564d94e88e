"""What a further encoder says is kept in files, and a model goes on from there."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from scripts.pretrain.__main__ import parser
from scripts.pretrain.export import export
from scripts.pretrain.kept import TOLD, Kept, keep, order, word_ends
from scripts.pretrain.models import build
from scripts.pretrain.objective import Objective
from scripts.pretrain.reading import Reading, all_texts
from scripts.pretrain.teacher import Teacher, word_starts
from scripts.pretrain.tokenizer import load
from tests.scripts.conftest import small_encoder


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of 72 coordinates, with which no model begins."""
    return small_encoder(tmp_path_factory.mktemp("larger") / "larger", width=72, seed=1)


@pytest.fixture(scope="module")
def packed(folders: tuple[Path, Path], larger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed folder of which the larger encoder has read every passage."""
    folder = tmp_path_factory.mktemp("kept") / "packed"
    shutil.copytree(folders[1], folder)
    keep(folder, all_texts(folder), str(larger))
    return folder


def test_what_is_kept_is_what_the_encoder_says(packed: Path, larger: Path) -> None:
    texts, teacher = all_texts(packed), Teacher(str(larger), dtype=torch.float32)
    kept = Kept(packed, word_ends(texts))
    assert sorted(kept.numbers.tolist()) == list(range(len(texts)))
    for numbers in ([0], [7, 3, len(texts) - 1]):
        group = [texts[number] for number in numbers]
        words, known, whole = teacher.read(group, [word_starts(text) for text in group])
        read = kept.read(numbers)
        for own, other in zip((*read[:2], kept.texts(numbers)), (words, known, whole), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-3, check_dtype=False)
        last = words[-len(word_starts(group[-1])) :]
        torch.testing.assert_close(read[2][-1], last.mean(0), rtol=1e-3, atol=1e-3)


def test_reading_stops_in_time_and_goes_on(
    folders: tuple[Path, Path], larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders[1], tmp_path / "packed")
    folder, texts = tmp_path / "packed", all_texts(folders[1])
    monkeypatch.setattr("scripts.pretrain.kept.CHUNK", 16)
    assert keep(folder, texts, str(larger), until=0.0) == 0
    clock = iter([1.0, 1.0, 3.0])
    monkeypatch.setattr("scripts.pretrain.kept.time.time", lambda: next(clock))
    assert keep(folder, texts, str(larger), until=2.0) == 32
    half = Kept(folder, word_ends(texts))
    assert half.numbers.tolist() == order(word_ends(texts))[:32].tolist()
    reading = Reading(folder, load(folder), half, rows=2, seed=0, llama=False)
    assert {int(number) for pool in reading.pools for number in pool} == set(half.numbers.tolist())
    before = half.read(half.numbers.tolist())
    monkeypatch.undo()
    assert keep(folder, texts, str(larger)) == len(texts)
    for own, other in zip(half.read(half.numbers.tolist()), before, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)


def test_another_encoder_is_refused(packed: Path, encoder: Path) -> None:
    with pytest.raises(ValueError, match=r"kept\.json is of larger; delete it to read with encoder"):
        keep(packed, all_texts(packed), str(encoder))


def test_the_map_begins_with_the_least_squares(packed: Path, encoder: Path) -> None:
    kept = Kept(packed, word_ends(all_texts(packed)))
    reading = Reading(packed, load(packed), kept, rows=16, seed=0, llama=False)
    config = Teacher(str(encoder)).model.config
    objective = Objective(build("t5", 0, config, load(packed).get_vocab_size()), kept.width, mapped=True)
    batch = reading.batch(0)
    objective.measure([batch])

    @torch.no_grad()
    def loss() -> float:
        return objective.distance(objective(batch["input_ids"], batch["attention_mask"])[1], batch)[0].item()

    objective.fit([batch])
    best = loss()
    assert best < 0.9
    for weight in (objective.map.weight, objective.shift):
        for step in (0.01, -0.01):
            with torch.no_grad():
                weight.add_(step)
                assert loss() > best
                weight.sub_(step)


@pytest.mark.parametrize("architecture", ["t5", "llama"])
def test_a_model_goes_on_where_another_run_ended(
    architecture: str, folders: tuple[Path, Path], packed: Path, tmp_path: Path
) -> None:
    def train(where: Path, run: str, tokens: int, *more: str) -> None:
        words = ["train", architecture, str(where), str(tmp_path / run), "--tokens", str(tokens), "--rows", "2"]
        arguments = parser().parse_args([*words, "--eager", "--float32", "--threads", "1", "--device", "cpu", *more])
        arguments.command(arguments)

    train(folders[1], "first", 500)
    model = tmp_path / "model"
    curve = export(tmp_path / "first", model)
    train(packed, "second", 700, "--model", str(model))
    told = json.loads((tmp_path / "second" / "run.json").read_text())
    assert [entry["tokens"] for entry in told["sessions"]] == [0, curve["tokens"]]
    assert [entry["read"] for entry in told["sessions"]] == ["encoder", "larger"]
    again = export(tmp_path / "second", tmp_path / "again")
    assert again["tokens"] >= curve["tokens"] + 700 and again["step"] > curve["step"]
    written = json.loads((tmp_path / "again" / "curve.json").read_text())
    assert written[0] == json.loads((model / "curve.json").read_text())[0]
    card = (tmp_path / "again" / "README.md").read_text()
    assert f"From token {curve['tokens']:,} on it learned to say what a larger encoder says, `larger`" in card
    assert str(tmp_path) not in card + (tmp_path / "again" / "run.json").read_text()
    assert json.loads((packed / TOLD).read_text())["done"] == len(all_texts(packed))


def test_a_model_with_other_tokens_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["train", "t5", str(folders[1]), str(tmp_path / "run"), "--tokens", "1", "--model"]
    arguments = parser().parse_args([*words, str(Path("src/gorp/shipped/gorp-tiny-t5").resolve())])
    with pytest.raises(ValueError, match=r"has other tokens \(14,592\)"):
        arguments.command(arguments)
