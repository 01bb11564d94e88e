"""Combinations of options, from the command line: three tasks without interruption, and interrupted and continued.

The fast tests cover a few combinations, among them the defaults of both modes; the slow tests cover all.
"""

import itertools
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments
from typer.testing import CliRunner

from gorp.cli import app
from gorp.training.interrupt import SaveOnInterrupt
from gorp.workspace import Workspace
from tests.workspace.project import make_project, task, weights, write_config, write_rows


ROOT = Path(__file__).parent.parent.parent
TASKS = ("one", "two", "three")
SPLITS = {
    "auto": ("auto", "auto"),
    "both": ("all-linear", "all-linear"),
    "cores": ("none", "auto"),
    "adapters": ("auto", "none"),
}
SAVES = {"steps": {"save_strategy": "steps", "save_steps": 2}, "no": {"save_strategy": "no"}}
MODES = ("strict", "fresh"), ("paper", "fresh"), ("paper", "shared")
SOURCES = ("moment", "sketch")
FAST = {
    ("t5", ("paper", "shared"), "auto", "steps", "moment"),
    ("llama", ("paper", "shared"), "cores", "steps", "sketch"),
    ("llama", ("strict", "fresh"), "auto", "no", "sketch"),
    ("t5", ("paper", "fresh"), "adapters", "steps", "sketch"),
}

ALL = [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
    for case in itertools.product(("t5", "llama"), MODES, SPLITS, SAVES, SOURCES)
]


@pytest.fixture(autouse=True)
def default_sigint():
    """Handle SIGINT as in a program that a shell started in the foreground."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def gorp_train(path: Path, workspace: str) -> Any:
    result = CliRunner().invoke(app, ["train", str(path), "--workspace", str(path.parent / workspace), "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def project(folder: Path, *, family: str = "t5", **blocks: Any) -> Path:
    """Three tasks of 24 rows, six steps each."""
    make_project(folder, family=family)
    write_rows(folder / "three.jsonl", 3, 24)
    write_rows(folder / "three_eval.jsonl", 3, 6)
    return write_config(folder, tasks=[task(name) for name in TASKS], **blocks)


def check(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a run interrupted by Ctrl-C in the second task and continued equals an unbroken one bit for bit."""
    result = gorp_train(path, "whole")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["pending"] == []
    begun = []

    def interrupt(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        begun.append(state.global_step)
        if begun.count(0) == 2 and state.global_step == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(SaveOnInterrupt, "on_step_begin", interrupt, raising=False)
        result = gorp_train(path, "cut")
        assert result.exit_code == 130, result.output
    assert Workspace(path.parent / "cut").current().contains == ["one"]
    result = gorp_train(path, "cut")
    assert result.exit_code == 0, result.output
    for version in ("v1", "v2", "v3"):
        assert weights(path.parent / "cut", version) == weights(path.parent / "whole", version)


@pytest.mark.parametrize(("family", "mode", "split", "save", "source"), ALL)
def test_three_tasks_are_learned_and_resumed(family, mode, split, save, source, tmp_path, monkeypatch):
    (name, adapter), (lora, full) = mode, SPLITS[split]
    method = {"name": "gorp", "mode": name, "adapter": adapter, "memory_source": source, "full_modules": full}
    if name == "paper" and split == "cores":  # at its default budget S is all of R^k after a task or two
        method["budget"] = 0.5
    training = {"per_device_train_batch_size": 4, "learning_rate": 5e-3, "num_train_epochs": 1, **SAVES[save]}
    blocks = {"method": method | {"rank": 4, "refresh_every": 3}, "lora": {"target_modules": lora}}
    check(project(tmp_path, family=family, training=training, **blocks), monkeypatch)


def documented() -> list[Any]:
    """Return every YAML of the documentation that trains something."""
    blocks = []
    for page in ("README.md", "docs/getting-started.md", "docs/configuration.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.S)]
        blocks += [(page, number, block) for number, block in enumerate(found) if "method" in block]
    assert len(blocks) >= 4
    return [pytest.param(block, marks=pytest.mark.slow, id=f"{page}-{number}") for page, number, block in blocks]


@pytest.mark.parametrize("block", documented())
def test_the_yaml_of_the_pages_learns_three_tasks_on_a_small_model(block, tmp_path, monkeypatch):
    """The YAML is used as it is, except for the model, the rows, and more frequent checkpoints."""
    kept = {key: value for key, value in block.items() if key in ("method", "lora", "encoding")}
    training = block.get("training", {}) | {"save_steps": 2, "per_device_train_batch_size": 4, "num_train_epochs": 1}
    family = "llama" if "Qwen" in block["model"]["path"] else "t5"
    model = block["model"] | {"path": "model"}
    check(project(tmp_path, family=family, model=model, training=training, **kept), monkeypatch)
