"""A next task is no resumed one, and an object trains one task: each mistake is an error that says what was meant."""

import json
import shutil

import pytest
from datasets import Dataset

from gorp import Protection
from gorp.errors import CheckpointError, ConfigError, TrainingError
from tests.attach.runs import learn, make, options_of
from tests.attach.trees import tree
from tests.runs import Kill, Killed


SAVING = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A folder with one task, and the output folder of that task, which has its checkpoints."""
    root = tmp_path_factory.mktemp("learned")
    learn("trainer", 1, root / "protected", root / "out", **SAVING)
    return root


@pytest.fixture
def folders(learned, tmp_path):
    shutil.copytree(learned, tmp_path, dirs_exist_ok=True)
    return tmp_path


def resume(folder, out, **options):
    protection = Protection(folder, **options_of("trainer", **options))
    make("trainer", 2, out, callbacks=[protection], **SAVING).train(resume_from_checkpoint=True)


def begin(folder, out, **arguments):
    """Train a task to step 2, and leave it there."""
    protection = Protection(folder, **options_of("trainer", **arguments))
    with pytest.raises(Killed):
        make("trainer", 2, out, callbacks=[protection, Kill(2)], **SAVING).train()


def test_the_next_task_must_not_resume_the_finished_one(folders):
    before = tree(folders / "protected")
    with pytest.raises(CheckpointError, match=r"belongs to task 1 \(`task-1`\).*but this is task 2.*it is finished"):
        resume(folders / "protected", folders / "out")
    assert tree(folders / "protected") == before


def test_a_checkpoint_of_a_task_of_another_name(folders):
    begin(folders / "protected", folders / "out2", task="november")
    with pytest.raises(CheckpointError, match=r"task 2 \(`november`\).*Resume it with the Protection that has this"):
        resume(folders / "protected", folders / "out2", task="december")


def test_a_checkpoint_of_the_same_task_from_another_version(folders):
    begin(folders / "protected", folders / "out2")
    learn("trainer", 1, folders / "other", folders / "out3", options={"seed": 1})
    with pytest.raises(CheckpointError, match="another version of that name than the folder has now"):
        resume(folders / "other", folders / "out2")


def test_a_checkpoint_without_protection(folders):
    """Its own weights are in it, not what earlier tasks left: going on from it would protect nothing."""
    for checkpoint in (folders / "out").glob("checkpoint-*"):
        shutil.rmtree(checkpoint / "protection")
    with pytest.raises(CheckpointError, match=r"checkpoint-2: was written without Protection.*another output_dir"):
        resume(folders / "protected", folders / "out")


def test_a_checkpoint_without_protection_elsewhere(folders):
    begin(folders / "protected", folders / "out2")
    shutil.rmtree(folders / "out2/checkpoint-2/protection")
    protection = Protection(folders / "protected", **options_of("trainer"))
    trainer = make("trainer", 2, folders / "out4", callbacks=[protection], **SAVING)
    with pytest.raises(CheckpointError, match="has no part of Protection"):
        trainer.train(resume_from_checkpoint=str(folders / "out2/checkpoint-2"))


@pytest.mark.parametrize("file", ["trainer_state.json", "protection/complete.json"])
def test_a_checkpoint_that_was_cut_off(file, folders):
    """The Trainer would take it for the newest one, and say only that a file is not there."""
    begin(folders / "protected", folders / "out2")
    checkpoint = folders / "out2/checkpoint-2"
    (checkpoint / "trainer_state.json").unlink()
    (checkpoint / file).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"checkpoint-2: is incomplete: .*Delete it"):
        resume(folders / "protected", folders / "out2")


def test_a_checkpoint_in_another_folder_than_output_dir(folders):
    begin(folders / "protected", folders / "out2")
    protection = Protection(folders / "protected", **options_of("trainer"))
    trainer = make("trainer", 2, folders / "out4", callbacks=[protection], **SAVING)
    with pytest.raises(CheckpointError, match="lies in another folder than output_dir"):
        trainer.train(resume_from_checkpoint=str(folders / "out2/checkpoint-2"))


@pytest.mark.parametrize("file", ["trainable.safetensors", "method.safetensors"])
def test_a_damaged_part(file, folders):
    begin(folders / "protected", folders / "out2")
    path = folders / "out2/checkpoint-2/protection" / file
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=f"{file}: damaged"):
        resume(folders / "protected", folders / "out2")


def test_one_trainer_trains_one_task(folders):
    protection = Protection(folders / "protected", **options_of("trainer"))
    trainer = make("trainer", 2, folders / "out2", callbacks=[protection])
    trainer.train()
    with pytest.raises(TrainingError, match=r"has trained task `task-2` already.*make a new Protection.*a new Trainer"):
        trainer.train()
    assert protection.save().name == "v2"


def test_one_protection_is_for_one_trainer(folders):
    protection = Protection(folders / "protected", **options_of("trainer"))
    make("trainer", 2, folders / "out2", callbacks=[protection])
    with pytest.raises(TrainingError, match="One object trains one task"):
        make("trainer", 2, folders / "out3", callbacks=[protection])


def test_save_before_and_twice(folders):
    protection = Protection(folders / "protected", **options_of("trainer"))
    with pytest.raises(TrainingError, match="it has not begun"):
        protection.save()
    trainer = make("trainer", 2, folders / "out2", callbacks=[protection])
    with pytest.raises(TrainingError, match="it has not begun"):
        protection.save()
    trainer.train()
    assert protection.save().name == "v2"
    with pytest.raises(TrainingError, match=r"saved already, as v2.*begins with a new object"):
        protection.save()


def test_two_tasks_on_one_parent(folders):
    """The second was trained without what the first protects."""
    both = []
    for number in (2, 3):
        protection = Protection(folders / "protected", task=f"t{number}", **options_of("trainer"))
        make("trainer", 2, folders / f"out{number}", callbacks=[protection]).train()
        both.append(protection)
    assert both[0].save().name == "v2"
    before = tree(folders / "protected")
    with pytest.raises(CheckpointError, match=r"has a new version, v2, since this task began.*Train the task again"):
        both[1].save()
    assert tree(folders / "protected") == before


def test_a_task_name_is_used_once(folders):
    with pytest.raises(ConfigError, match="has learned a task `task-1` already"):
        Protection(folders / "protected", task="task-1")


def test_the_same_model_object_may_train_the_next_task(tmp_path):
    """It has all tasks in its weights; a new copy of the base model gets the same."""
    first, _ = learn("trainer", 1, tmp_path / "a", tmp_path / "out1")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    learn("trainer", 2, tmp_path / "a", tmp_path / "out2", model=first.model)
    learn("trainer", 2, tmp_path / "b", tmp_path / "out3")
    records = [json.loads((tmp_path / name / "versions/v2/version.json").read_text()) for name in "ab"]
    assert records[0]["sha256"] == records[1]["sha256"]


def test_no_rows(folders):
    protection = Protection(folders / "protected", **options_of("trainer"))
    empty = Dataset.from_dict({"input_ids": [], "labels": []})
    with pytest.raises(ValueError):  # the Trainer's own
        make("trainer", 2, folders / "out2", callbacks=[protection], data=empty).train()
