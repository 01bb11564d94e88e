"""The metrics of a task are in the run that the Trainer's own tracker has opened, and in no other."""

import json
import struct

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.attach.runs import learn
from tests.runs import rows


def evaluate(model):
    """Scores of earlier tasks, as a user's function returns them."""
    return {"october": 0.5}


EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "settings": {"eval_dataset": rows(2, 4)}}
METRICS = {"cl/task", "cl/leak", "cl/leak_served", "cl/capacity_mean", "cl/capacity_max", "cl/score/october"}


def records(data):
    """Records of a W&B run's file: 7 bytes, then LevelDB's log format.

    Blocks of 32 KiB hold pieces, each after 7 bytes: CRC-32, length, and whether the piece is a whole record (1) or its
    first (2), middle (3) or last (4) part.
    """
    block, at, parts = 2**15, 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # the rest of a block is padding
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def two_tasks(kind, tmp_path, **arguments):
    learn(kind, 1, tmp_path / "protected", tmp_path / "out1")
    return learn(
        kind, 2, tmp_path / "protected", tmp_path / "out2", options={"evaluate": evaluate}, **EVALUATED, **arguments
    )


def test_tensorboard(tmp_path):
    trainer, protection = two_tasks("completion", tmp_path, report_to="tensorboard", logging_steps=1)
    (run,) = (tmp_path / "out2/runs").iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/train_runtime"} <= tags  # the Trainer's own are in the same run
    found = {tag.removeprefix("train/"): events.Scalars(tag) for tag in tags if "cl/" in tag}
    assert found.keys() == METRICS
    assert found["cl/leak"][0].value == pytest.approx(protection.facts()["leak"], rel=1e-5)
    assert found["cl/leak"][0].step == trainer.state.global_step
    assert {each.step for each in found["cl/score/october"]} >= {2, trainer.state.global_step}
    assert all(each.value == 0.5 for each in found["cl/score/october"])
    logged = [entry for entry in trainer.state.log_history if "cl/leak" in entry]
    assert len(logged) == 1 and logged[0]["cl/task"] == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of wandb and what it imports
def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    for key, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(key, value)
    try:
        two_tasks("completion", tmp_path, report_to="wandb")
    finally:
        wandb.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found = {}
    for data in records(file.read_bytes()):
        for item in Record.FromString(data).history.item:
            found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    assert {key.removeprefix("train/") for key in found if "cl/" in key} == METRICS
    assert 0 < found["train/cl/leak"] <= 1e-6 and found["train/cl/score/october"] == 0.5
    assert "eval/loss" in found  # the Trainer's own are in the same run
