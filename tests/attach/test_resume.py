"""A training that was stopped and resumed is the uninterrupted one, bit for bit."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from gorp import Protection
from gorp.errors import CheckpointError, TrainingError
from tests.attach.runs import learn, lora_config, make, options_of, version
from tests.runs import Kill, Killed, assert_equal


SCRIPT = Path(__file__).with_name("train_tasks.py")


class Optimizer(TrainerCallback):
    """Keeps the optimizer's state when training ends."""

    def on_train_end(self, args, state, control, optimizer=None, **kwargs):
        self.state = {
            f"{i}/{key}": torch.as_tensor(x).clone()
            for i, state in optimizer.state_dict()["state"].items()
            for key, x in state.items()
        }


def interrupted(kind, task, folder, out, *, adapter=None, at=2, **arguments):
    """Train a task until step `at`, and leave it there."""
    protection = Protection(folder, **options_of(kind, adapter))
    trainer = make(kind, task, out, adapter=adapter, callbacks=[protection, Kill(at)], **arguments)
    with pytest.raises(Killed):
        trainer.train()
    return protection, trainer


CASES = {
    "trainer": ("trainer", None, {}),
    "sft-adapter": ("messages", {}, {}),
    "dropout": ("trainer", {"lora_dropout": 0.3}, {}),
    "bf16": ("messages", {}, {"bf16": True}),
    "seq2seq": ("seq2seq", None, {}),
    "epochs": ("packing", {}, {"num_train_epochs": 2, "save_strategy": "epoch"}),
    "checkpointing": ("completion", None, {"gradient_checkpointing": True}),
}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] * (index > 1)) for index, name in enumerate(CASES)]
)
def test_resumed_is_uninterrupted(case, tmp_path):
    kind, adapter, arguments = CASES[case]
    adapter = None if adapter is None else lora_config(kind, **adapter)
    arguments = {"save_strategy": "steps", "save_steps": 1} | arguments
    learn(kind, 1, tmp_path / "whole", tmp_path / "out1", adapter=adapter)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    ends = Optimizer(), Optimizer()
    whole, _ = learn(kind, 2, tmp_path / "whole", tmp_path / "a", adapter=adapter, callbacks=[ends[0]], **arguments)
    at = max(1, whole.state.max_steps // 2)
    interrupted(kind, 2, tmp_path / "resumed", tmp_path / "b", adapter=adapter, at=at, **arguments)
    resumed, _ = learn(
        kind, 2, tmp_path / "resumed", tmp_path / "b", adapter=adapter, resume=True, callbacks=[ends[1]], **arguments
    )
    assert resumed.state.global_step == whole.state.global_step > at
    assert_equal(version(tmp_path / "resumed", "v2"), version(tmp_path / "whole", "v2"))
    assert_equal(ends[1].state, ends[0].state)
    assert_equal(dict(resumed.model.named_parameters()), dict(whole.model.named_parameters()))


def test_after_ctrl_c_nothing_can_be_saved_and_a_second_train_is_refused(tmp_path):
    class CtrlC(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KeyboardInterrupt

    protection = Protection(tmp_path / "protected", **options_of("trainer"))
    trainer = make("trainer", 1, tmp_path / "out", callbacks=[protection, CtrlC()], save_strategy="steps", save_steps=1)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    with pytest.raises(TrainingError, match=r"has not finished: 2 of 4 steps.*resume_from_checkpoint=True"):
        protection.save()
    with pytest.raises(TrainingError, match="to go on with an interrupted task make both again"):
        trainer.train()
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before
    assert not (tmp_path / "protected").exists()


def test_sigterm_with_jit_checkpoints_leaves_a_task_to_resume(tmp_path):
    """`enable_jit_checkpoint` ends `train` early without an error; the task is not finished then."""

    class Term(TrainerCallback):
        def __init__(self, trainer_of):
            self.trainer_of = trainer_of

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:  # what the handler of SIGTERM does
                jit = next(cb for cb in self.trainer_of[0].callback_handler.callbacks if hasattr(cb, "jit_manager"))
                jit.jit_manager.is_checkpoint_requested = True

    learn("trainer", 1, tmp_path / "whole", tmp_path / "a")
    protection, found = Protection(tmp_path / "protected", **options_of("trainer")), []
    handler = signal.getsignal(signal.SIGTERM)
    trainer = make("trainer", 1, tmp_path / "b", callbacks=[protection, Term(found)], enable_jit_checkpoint=True)
    found.append(trainer)
    trainer.train()
    assert signal.getsignal(signal.SIGTERM) is handler
    with pytest.raises(TrainingError, match="has not finished"):
        protection.save()
    learn("trainer", 1, tmp_path / "protected", tmp_path / "b", resume=True)
    assert_equal(version(tmp_path / "protected", "v1"), version(tmp_path / "whole", "v1"))


def test_a_checkpoint_of_two_trainings_is_refused(tmp_path):
    """A kill while a second training wrote over the first one's checkpoint: the parts do not belong together."""
    interrupted("trainer", 1, tmp_path / "p", tmp_path / "out", at=1, save_strategy="steps", save_steps=1)
    first = (tmp_path / "out/checkpoint-1/trainer_state.json").read_text()
    interrupted("trainer", 1, tmp_path / "p", tmp_path / "out", at=1, save_strategy="steps", save_steps=1)
    (tmp_path / "out/checkpoint-1/trainer_state.json").write_text(first)
    with pytest.raises(CheckpointError, match="are of two trainings of task `task-1`"):
        learn("trainer", 1, tmp_path / "p", tmp_path / "out", resume=True)


def start(*words: object) -> subprocess.Popen:
    """Run `train_tasks.py` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "adapter"), [("trainer", "none"), ("messages", "own")])
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_killed_process_resumes(name, kind, adapter, tmp_path):
    whole = start(tmp_path / "whole", kind, adapter)
    output, errors = whole.communicate(timeout=280)
    assert whole.returncode == 0, errors[-3000:]
    assert json.loads(output.splitlines()[-1])["leak"] <= 1e-6
    killed = start(tmp_path / "killed", kind, adapter, "--pause-at", 2)
    assert killed.stdout is not None
    assert any(line.strip() == "paused" for line in killed.stdout)
    killed.send_signal(getattr(signal, name))
    killed.communicate(timeout=60)
    assert killed.returncode == {"SIGINT": -signal.SIGINT, "SIGKILL": -signal.SIGKILL}[name]
    assert not (tmp_path / "killed/protected/versions/v2").exists()
    resumed = start(tmp_path / "killed", kind, adapter, "--resume")
    _, errors = resumed.communicate(timeout=280)
    assert resumed.returncode == 0, errors[-3000:]
    for number in ("v1", "v2"):
        assert_equal(version(tmp_path / "killed/protected", number), version(tmp_path / "whole/protected", number))
