"""The leak that a version records equals the one computed from its files: trained, served, per earlier task."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gorp.cli import app
from gorp.cli.console import fraction
from gorp.errors import CheckpointError
from gorp.workspace import Workspace, load_config, run_sequence, status
from gorp.workspace.leaks import leaks_between
from tests.workspace.project import make_project, task, write_config, write_rows


SCRIPT = Path(__file__).parent.parent.parent / "scripts/leak_from_files.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Three tasks on a bfloat16 model, at a budget that the second reaches; the folder with `work` in it."""
    folder = tmp_path_factory.mktemp("leaks")
    make_project(folder, family="llama")
    write_rows(folder / "three.jsonl", 3, 24)
    write_rows(folder / "three_eval.jsonl", 3, 6)
    path = write_config(
        folder,
        model={"path": "model", "dtype": "bfloat16"},
        method={"name": "gorp", "rank": 4, "refresh_every": 3, "memory_source": "sketch", "budget": 0.25},
        training={"per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_strategy": "no"},
        tasks=[task(name) for name in ("one", "two", "three")],
    )
    torch.use_deterministic_algorithms(True)
    run_sequence(load_config(path), folder / "work")
    return folder


def record(folder: Path, version: str) -> dict:
    return json.loads((folder / f"work/versions/{version}/version.json").read_text())


def test_the_script_computes_from_the_files_what_the_run_reported(finished):
    command = [sys.executable, SCRIPT, finished / "work", "--base", finished / "model"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert list(found) == ["v1 -> v2", "v2 -> v3"]
    for step, entry in found.items():
        version = record(finished, step[-2:])
        assert entry["trained"]["worst"] == pytest.approx(version["leak"], abs=1e-6)  # both are rounding of float32
        assert entry["served"]["worst"] == pytest.approx(version["leak_served"], rel=1e-2)
        assert entry["served"]["median"] == pytest.approx(version["leak_served_median"], rel=1e-2)
        assert entry["served"]["worst"] > 1e-3 > 1e-5 > entry["trained"]["worst"]
        assert [name.split()[1] for name in entry["earlier"]] == list(version["leak_earlier"])
        for name, leaks in entry["earlier"].items():
            told = version["leak_earlier"][name.split()[1]]
            assert leaks["weights"] == told["weights"] == 14
            assert leaks["worst"] == pytest.approx(told["worst"], rel=1e-3, abs=1e-6)
            assert leaks["median"] == pytest.approx(told["median"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("file", ["v1/memory.safetensors", "v2/memory.safetensors", "v2/delta.safetensors"])
def test_no_leak_is_computed_from_a_damaged_file(finished, tmp_path, file):
    """Changed in its last byte, a number of a tensor, the file can still be read."""
    shutil.copytree(finished / "work", tmp_path / "work")
    path = tmp_path / "work/versions" / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    store = Workspace(tmp_path / "work")
    with pytest.raises(CheckpointError, match=f"{file}: damaged or changed"):
        leaks_between(store.lineage(store.version("v2")), store.version("v3"))


def test_released_directions_raise_the_leak_against_the_first_task(finished):
    second, third = (record(finished, version) for version in ("v2", "v3"))
    assert second["released"] > 0 and second["leak_earlier"]["one"]["worst"] == pytest.approx(second["leak"], rel=0.3)
    assert third["leak"] <= 1e-5 and third["leak_earlier"]["two"]["worst"] <= 1e-5
    assert third["leak_earlier"]["one"]["worst"] > 0.1  # S had released directions of the first task
    totals = {key: sum(w[key] for w in third["weights"].values()) for key in ("released", "released_energy")}
    assert (third["released"], third["released_energy"]) == pytest.approx(tuple(totals.values()))
    assert record(finished, "v1")["leak"] is None and record(finished, "v1")["leak_earlier"] == {}
    assert record(finished, "v0")["leak_earlier"] is None


def test_status_shows_the_leaks_as_json_and_as_a_table(finished):
    state = status(finished / "work")
    last = state["versions"][-1]
    assert {key: last[key] for key in ("leak", "leak_served", "leak_earlier", "released")} == {
        key: record(finished, "v3")[key] for key in ("leak", "leak_served", "leak_earlier", "released")
    }
    result = CliRunner().invoke(app, ["status", str(finished / "work"), "--explain"])
    assert result.exit_code == 0, result.output
    assert fraction(last["leak_served"]) in result.stdout
    assert fraction(last["leak_earlier"]["one"]["worst"]) in result.stdout
    assert state["warnings"] and all(line in " ".join(result.stdout.split()) for line in state["warnings"])
    assert [line for line in state["warnings"] if line.startswith("rounding to bfloat16: ")]
    assert [line for line in record(finished, "v2")["warnings"] if line.startswith("the budget is reached: ")]


def test_a_method_without_protected_directions_has_no_leak(tmp_path):
    path = make_project(tmp_path, family="llama", method={"name": "sequential_lora"})
    result = CliRunner().invoke(app, ["train", str(path)])
    assert result.exit_code == 0, result.output
    last = status(tmp_path / "run")["versions"][-1]
    assert last["leak"] is last["leak_served"] is last["released"] is None and last["leak_earlier"] == {}
    assert status(tmp_path / "run")["warnings"] == []


def test_training_warns_before_a_task_and_refuses_one_that_could_change_nothing(tmp_path, monkeypatch):
    """Before anything is scored or written, in a dry run too."""
    blocks = {"training": {"save_strategy": "no"}, "method": {"name": "gorp", "budget": 0.1}}
    path = make_project(tmp_path, family="llama", tasks=[task("one")], **blocks)
    assert CliRunner().invoke(app, ["train", str(path)]).exit_code == 0
    write_config(tmp_path, **blocks)
    result = CliRunner().invoke(app, ["train", str(path), "--dry-run"])
    assert result.exit_code == 0 and "the budget may be reached in the next task in " in result.stderr
    monkeypatch.setattr("gorp.core.memory.SubspaceMemory.is_full", lambda self, name: True)
    for extra in ([], ["--dry-run"]):
        result = CliRunner().invoke(app, ["train", str(path), *extra])
        assert result.exit_code == 2 and "S is the whole space for every trained weight (14 of them)" in result.stderr
        assert status(tmp_path / "run")["versions"][-1]["task"] == "one"
