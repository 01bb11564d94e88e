"""A checkpoint is read only when every one of its files has the bytes that were written."""

import json
import shutil
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from gorp.errors import CheckpointError
from gorp.training import engine, trainer
from gorp.training.checkpoint import COMPLETE, last_complete, last_whole, mark_complete, seconds_until, verify
from tests.runs import Kill, Killed, assert_equal, fresh, tiny, train


SAVING = {"save_strategy": "steps", "save_steps": 1}
FILES = (
    "trainable.safetensors",
    "method.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)


def begin(folder, *, steps=3):
    """A task cut off after `steps` steps, with a checkpoint of each of its last two."""
    model = tiny("llama")
    with pytest.raises(Killed):
        train(model, fresh("gorp", model), 1, folder, callbacks=(Kill(steps),), **SAVING)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    begin(folder)
    return folder


@pytest.fixture
def checkpoints(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "task")


def flip(path):
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {"flipped": flip, "emptied": lambda path: path.write_bytes(b""), "deleted": lambda path: path.unlink()}


def test_every_file_has_a_digest(begun):
    folder = last_complete(begun)
    digests = json.loads((folder / COMPLETE).read_text())["sha256"]
    assert set(digests) == {path.name for path in folder.iterdir()} - {COMPLETE}
    assert set(FILES) <= set(digests)
    verify(folder)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_and_the_older_checkpoint_is_taken(checkpoints, name, damage):
    DAMAGE[damage](checkpoints / "checkpoint-3" / name)
    said = []
    assert last_whole(checkpoints, say=said.append).name == "checkpoint-2"
    assert (
        len(said) == 1
        and f"checkpoint-3/{name}" in said[0]
        and said[0].endswith("an older checkpoint, which is whole: checkpoint-2")
    )
    DAMAGE[damage](checkpoints / "checkpoint-2" / name)
    with pytest.raises(CheckpointError, match=rf"checkpoint-3/{name}: .*--restart"):
        last_whole(checkpoints)


@pytest.mark.parametrize("content", ["", "[]", '{"complete": true}', '{"complete": true, "sha256": {}}'])
def test_without_digests_nothing_is_read(checkpoints, content):
    for folder in checkpoints.iterdir():
        (folder / COMPLETE).write_text(content)
    with pytest.raises(CheckpointError, match=rf"checkpoint-3/{COMPLETE}: .*--restart"):
        last_whole(checkpoints)


def test_as_many_processes_go_on_as_wrote_it(begun):
    with pytest.raises(CheckpointError, match="written by 1 processes, and 2 would resume from it"):
        last_whole(begun, ranks=2)


def test_what_the_older_checkpoint_leads_to_is_the_same(checkpoints, tmp_path):
    """The damaged folder is written anew, and nothing of it is left."""
    flip(checkpoints / "checkpoint-3" / "optimizer.pt")
    (checkpoints / "checkpoint-3" / "foreign").touch()
    ends = []
    for folder in (checkpoints, tmp_path / "unbroken"):
        model = tiny("llama")
        method = fresh("gorp", model)
        result = train(model, method, 1, folder, **SAVING, save_total_limit=20)
        ends.append((model.state_dict(), method.state_dict()))
        assert result.resumed_at == (2 if folder == checkpoints else 0)
    for resumed, unbroken in zip(*ends, strict=True):
        assert_equal(resumed, unbroken)
    assert not (checkpoints / "checkpoint-3" / "foreign").exists()
    verify(checkpoints / "checkpoint-3")


def test_a_whole_checkpoint_is_there_while_another_is_written(checkpoints, monkeypatch):
    """A damaged one with more steps and an interrupted one push out no whole one before the new one is marked."""
    flip(shutil.copytree(checkpoints / "checkpoint-3", checkpoints / "checkpoint-6") / "optimizer.pt")
    flip(checkpoints / "checkpoint-3" / "optimizer.pt")
    (shutil.copytree(checkpoints / "checkpoint-3", checkpoints / "checkpoint-5") / COMPLETE).unlink()
    whole = []

    def mark(folder, **options):
        whole.append(last_whole(checkpoints).name)
        mark_complete(folder, **options)

    monkeypatch.setattr(trainer, "mark_complete", mark)
    model = tiny("llama")
    with pytest.raises(Killed):
        train(model, fresh("gorp", model), 1, checkpoints, callbacks=(Kill(4),), **SAVING, save_total_limit=2)
    assert whole == ["checkpoint-2", "checkpoint-3"]
    assert sorted(path.name for path in checkpoints.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_it_is_marked_only_when_all_its_files_are_on_the_disk(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    for name in ("a", "deep/b"):
        (tmp_path / name).write_text(name)
    synced = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append((tmp_path / COMPLETE).exists()))
    mark_complete(tmp_path)
    assert synced[:3] == [False] * 3  # both files and the folder
    verify(tmp_path)


class Clock(TrainerCallback):
    """A clock on which each optimizer step takes ten seconds, and nothing else takes any time."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def on_step_end(self, *_, **__):
        self.now += 10


def test_the_time_of_a_task_is_the_sum_over_its_parts(tmp_path, monkeypatch):
    """Of each part until its last checkpoint: the fifth and the seventh step are trained twice and count once."""
    clock = Clock()
    for module in (engine, trainer):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    saving = {"save_strategy": "steps", "save_steps": 2}
    for killed in (5, 7):
        model = tiny("llama")
        with pytest.raises(Killed):
            train(model, fresh("gorp", model), 1, tmp_path, callbacks=(clock, Kill(killed)), **saving)
        assert seconds_until(last_complete(tmp_path)) == 10 * (killed - 1)
    model = tiny("llama")
    result = train(model, fresh("gorp", model), 1, tmp_path, callbacks=(clock,), **saving)
    assert (result.resumed_at, result.steps, result.seconds, clock.now) == (6, 8, 80, 100)
