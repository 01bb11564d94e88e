"""`gorp doctor`: a whole workspace has no problem, every damage is one, and nothing is written or given away."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from gorp.doctor import check_installation, check_workspace
from gorp.models.load import ModelConfig, on_this_machine
from gorp.storage import read_json, write_json
from gorp.workspace import Workspace
from gorp.workspace.lock import LOCK
from tests.command import gorp
from tests.workspace.project import tree_hash, write_config


def levels(findings):
    return {(finding.level, finding.what) for finding in findings if finding.level != "ok"}


def test_a_whole_workspace_has_no_problem_and_nothing_is_written(project):
    before = tree_hash(project)
    done = gorp("doctor", project / "run.yaml")
    assert done.exit_code == 0 and "problem" not in done.stdout
    lines = done.stdout.splitlines()
    for start in (
        *("ok       python: ", "ok       packages: ", "ok       torch: ", "ok       hub cache: "),
        *("ok       folder: ", "ok       lock: no process", "ok       ledger: 6 events", "ok       versions: 3 whole"),
        *("ok       scores: 6 scores", "ok       yaml: ", "ok       base model: ", "ok       disk: "),
    ):
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert len(lines) <= 24 and tree_hash(project) == before
    told = json.loads(gorp("doctor", project / "run", "--json").stdout)
    assert told["problems"] == 0 and {item["level"] for item in told["findings"]} == {"ok"}


def test_it_is_loaded_without_scipy_because_it_is_for_a_broken_installation():
    code = "import sys; sys.modules['scipy'] = None; import gorp.doctor.folder; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def damage_ledger(project):
    path = project / "run/ledger.jsonl"
    path.write_text(path.read_text().replace('"task": "one"', '"task": "two"', 1))


def other_format(project):
    write_json(project / "run/gorp-workspace.json", {"format": 99})


def other_file(project, name, **changes):
    write_json(project / "model" / name, read_json(project / "model" / name) | changes)


DAMAGES = {
    "memory.safetensors: damaged": ("versions", lambda p: flip(p / "run/versions/v1/memory.safetensors")),
    "v1/version.json": ("versions", lambda p: flip(p / "run/versions/v1/version.json")),
    "v1: missing": ("versions", lambda p: shutil.rmtree(p / "run/versions/v1")),
    "does not name a complete version": ("versions", lambda p: (p / "run/CURRENT").write_text("v7\n")),
    "ledger.jsonl, line 4: damaged": ("ledger", damage_ledger),
    "one.json: damaged": ("scores", lambda p: flip(p / "run/eval/rows/one.json")),
    "scores.json": ("scores", lambda p: (p / "run/eval/scores.json").write_text("{")),
    "other weights": ("base model", lambda p: flip(p / "model/model.safetensors")),
    "other tokenizer": ("base model", lambda p: other_file(p, "tokenizer.json", version="2")),
    "no config.json": ("base model", lambda p: (p / "model/config.json").unlink()),
    "run.yaml": ("yaml", lambda p: (p / "run.yaml").write_text("tasks: [")),
    "seed is 5": ("yaml", lambda p: write_config(p, seed=5)),
    "learning_rat": ("yaml", lambda p: write_config(p, training={"learning_rat": 1})),
    "has format 99": ("folder", other_format),
    "this is a link": ("folder", lambda p: (p / "run/eval/x").symlink_to(p)),
}


@pytest.mark.parametrize("says", DAMAGES)
def test_each_damage_is_a_problem_that_is_named(project, says):
    what, damage = DAMAGES[says]
    damage(project)
    before = tree_hash(project / "run") if what != "folder" else None
    problems = [f for f in check_workspace(project / "run", source=project / "run.yaml") if f.level == "problem"]
    assert any(finding.what == what and says in finding.says for finding in problems), problems
    assert before is None or tree_hash(project / "run") == before


def test_one_damaged_version_does_not_hide_the_other(project):
    for version in ("v1", "v2"):
        flip(project / f"run/versions/{version}/delta.safetensors")
    says = [f.says for f in check_workspace(project / "run") if (f.level, f.what) == ("problem", "versions")]
    assert ["v1/delta" in says[0], "v2/delta" in says[1]] == [True, True]
    done = gorp("doctor", project / "run")
    assert done.exit_code == 1 and "v2/delta.safetensors: damaged" in done.stdout


def test_what_is_only_unusual_is_a_warning(project):
    (project / "run.yaml").unlink()
    (project / "run/eval/samples/v2-one.jsonl").write_text("x")
    (project / "run/CURRENT").write_text("v1\n")
    found = levels(check_workspace(project / "run"))
    assert found == {("warning", "yaml"), ("warning", "scores"), ("warning", "versions")}


def test_the_lock_of_a_process_that_ended_another_computer_and_a_running_one(project):
    path = project / "run" / LOCK
    with Workspace(project / "run").writing():
        holder = json.loads(path.read_text())
        assert levels(check_workspace(project / "run")) == {("warning", "lock")}
        assert Workspace(project / "run").root and path.exists()  # still held after the check
    path.write_text(json.dumps(holder | {"started": "0"}))
    [lock] = [finding for finding in check_workspace(project / "run") if finding.what == "lock"]
    assert lock.level == "ok" and f"left by process {holder['pid']}" in lock.says
    path.write_text(json.dumps(holder | {"host": "elsewhere", "boot": "another"}))
    [lock] = [finding for finding in check_workspace(project / "run") if finding.what == "lock"]
    assert lock.level == "warning" and "remove" in lock.advice and "elsewhere" in lock.says


def test_what_gc_would_free_is_said(project):
    (project / "run/run/one").mkdir(parents=True)
    (project / "run/run/one/x").write_text("x" * 100)
    assert any("gorp gc" in finding.says for finding in check_workspace(project / "run"))


def test_package_versions_are_compared_with_the_ranges_of_the_metadata(monkeypatch):
    wanted = ["numpy>=99", "not-there>=1", 'hypothesis>=99; extra == "test"', 'also-not-there; extra == "test"']
    monkeypatch.setattr(metadata, "requires", lambda name: [*wanted, "rich>=1"])
    found = [finding for finding in check_installation() if finding.what == "packages"]
    assert [(finding.level, finding.says.split()[0]) for finding in found] == [
        ("problem", "numpy"),
        ("problem", "not-there"),
        ("warning", "hypothesis"),
    ]
    assert found[0].advice == '`pip install "numpy>=99"`'


def test_a_torch_that_cannot_be_imported_does_not_end_the_report(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = list(check_installation())
    assert ("problem", "torch") in levels(found) and found[-1].what == "hub cache"


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "a/b"))
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    assert ("warning", "hub cache") in levels(check_installation())


def test_no_token_is_printed(project, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "hf_secretsecret")
    for options in ((), ("--json",)):
        done = gorp("doctor", project / "run", *options)
        assert "secretsecret" not in done.stdout + done.stderr


def test_a_hub_model_is_looked_for_in_the_cache_only(monkeypatch):
    monkeypatch.setattr("httpx.Client.send", lambda *_, **__: pytest.fail("a network access"))
    assert on_this_machine(ModelConfig(path="nobody/has-this")) is None


def test_a_protection_folder_is_checked_too(finished, tmp_path):
    record = dict(Workspace(finished / "run").version("v0").record)
    base = record["base"] | {"path": "../model"}
    store = Workspace(tmp_path / "protected")
    with store.writing():
        kept = {key: value for key, value in record.items() if key not in ("sha256", "version")}
        store.publish("v0", kept | {"made_by": "protection", "base": base})
    assert levels(check_workspace(store.root)) == {("problem", "base model")}
    shutil.copytree(finished / "model", tmp_path / "model")
    assert levels(check_workspace(store.root)) == set()


def test_a_folder_that_is_no_workspace_exits_with_1(tmp_path):
    assert gorp("doctor", tmp_path).exit_code == 1
    assert gorp("doctor", "").exit_code == 2
