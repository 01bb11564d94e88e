"""Which settings may change between two runs of a workspace, and when an unfinished training is continued."""

import json

import pytest

from gorp.errors import CheckpointError, ConfigError, TrainingError
from gorp.progress import Progress
from gorp.workspace import Workspace, effective, load_config, plan, run_sequence, status
from gorp.workspace import run as run_module
from tests.workspace.project import make_project, task, tree_hash, weights, write_config, write_rows


TRAINING = {"per_device_train_batch_size": 4, "learning_rate": 5e-3, "save_steps": 2, "num_train_epochs": 1}
CHANGES_RESULT = [
    {"training": TRAINING | {"learning_rate": 1e-3}},
    {"training": TRAINING | {"per_device_train_batch_size": 2}},
    {"method": {"name": "gorp", "rank": 4, "refresh_every": 4}},
    {"lora": {"lora_dropout": 0.1}},
    {"encoding": {"max_prompt_tokens": 40, "max_completion_tokens": 8}},
]
KEEPS_RESULT = [
    {"training": TRAINING | {"save_steps": 3, "logging_steps": 1}},
    {"eval": {"max_new_tokens": 4, "limit": 2}},
]


class Stop(Exception):
    """Raised where the process is to end."""


class Said(Progress):
    """Collects the lines that are printed."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def interrupted(monkeypatch, config, work, where="write_state", call=1):
    """Run until the function `where` of `run.py` is called for the `call`-th time."""
    original, calls = getattr(run_module, where), []

    def stop(*args, **kwargs):
        calls.append(where)
        if len(calls) == call:
            raise Stop
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(run_module, where, stop)
        run_sequence(config, work)


def test_before_the_first_task_is_learned_all_settings_may_change(tmp_path):
    hopeless = {"per_device_train_batch_size": 4, "learning_rate": 1e30, "max_grad_norm": 0, "save_strategy": "no"}
    first = make_project(tmp_path, training=hopeless, method={"name": "sequential_full"})
    with pytest.raises(TrainingError, match="Try a lower learning rate"):
        run_sequence(load_config(first), tmp_path / "work")
    assert status(tmp_path / "work")["current"] == "v0"
    changes = {"seed": 1, "lora": {"r": 2}, "encoding": {"max_prompt_tokens": 40}}
    path = write_config(tmp_path, **changes)
    said = Said()
    run_sequence(load_config(path), tmp_path / "work", progress=said)
    run_sequence(load_config(path), tmp_path / "anew")
    restarted = "task one starts from the beginning: it was started under other settings, without a checkpoint"
    assert restarted in said.lines
    for version in ("v1", "v2"):
        assert weights(tmp_path / "work", version) == weights(tmp_path / "anew", version)
    assert status(tmp_path / "work")["matrix"] == status(tmp_path / "anew")["matrix"]


def test_between_tasks_training_encoding_and_some_method_options_may_change(tmp_path):
    path, work = make_project(tmp_path, tasks=[task("one")]), tmp_path / "work"
    run_sequence(load_config(path), work)
    before = weights(work, "v1")
    changes = {
        "training": {"per_device_train_batch_size": 2, "learning_rate": 1e-3, "num_train_epochs": 2},
        "encoding": {"max_prompt_tokens": 40, "max_completion_tokens": 9},
        "method": {"name": "gorp", "rank": 4, "refresh_every": 5, "energy": 0.9, "core_learning_rate": 1e-3},
        "lora": {"lora_dropout": 0.1},
    }
    run_sequence(load_config(write_config(tmp_path, **changes)), work)
    assert weights(work, "v1") == before
    training = json.loads((work / "versions/v2/training.json").read_text())
    assert training["steps"] == 2 * 24 // 2
    records = {v.name: v.record["config"]["training"]["learning_rate"] for v in Workspace(work).versions()}
    assert records == {"v0": 5e-3, "v1": 5e-3, "v2": 1e-3}


@pytest.mark.parametrize(
    "changes", [*CHANGES_RESULT[:2], *(pytest.param(c, marks=pytest.mark.slow) for c in CHANGES_RESULT[2:])]
)
def test_an_unfinished_task_is_not_continued_under_other_settings(tmp_path, monkeypatch, changes):
    work = tmp_path / "work"
    interrupted(monkeypatch, load_config(make_project(tmp_path, tasks=[task("one")])), work)
    assert list((work / "run/one").glob("checkpoint-*/complete.json"))
    before = tree_hash(work)
    path = write_config(tmp_path, tasks=[task("one")], **changes)
    with pytest.raises(CheckpointError, match=r"unfinished training of task `one`, with .* \(now .*--restart"):
        run_sequence(load_config(path), work)
    with pytest.raises(CheckpointError):
        plan(load_config(path), work)
    assert tree_hash(work) == before and status(work)["begun"] == ["one"]
    run_sequence(load_config(path), work, restart=True)
    run_sequence(load_config(path), tmp_path / "anew")
    assert weights(work, "v1") == weights(tmp_path / "anew", "v1")


@pytest.mark.parametrize(("where", "call"), [("write_state", 1), ("score_row", 2)])
def test_the_message_names_the_changed_setting_and_changing_it_back_continues(tmp_path, monkeypatch, where, call):
    """Also if the training itself was finished and only its scores were missing."""
    path, work = make_project(tmp_path, tasks=[task("one")]), tmp_path / "work"
    run_sequence(load_config(path), tmp_path / "whole")
    interrupted(monkeypatch, load_config(path), work, where, call)
    rate = TRAINING | {"learning_rate": 1e-3}
    changed = load_config(write_config(tmp_path, tasks=[task("one")], training=rate))
    with pytest.raises(CheckpointError, match=r"training.learning_rate = 0.005 \(now 0.001\)"):
        run_sequence(changed, work)
    run_sequence(load_config(write_config(tmp_path, tasks=[task("one")])), work)
    assert weights(work, "v1") == weights(tmp_path / "whole", "v1")


@pytest.mark.parametrize("changes", KEEPS_RESULT)
def test_settings_that_do_not_influence_the_result_may_change_in_the_middle_of_a_task(tmp_path, monkeypatch, changes):
    path, work = make_project(tmp_path, tasks=[task("one")]), tmp_path / "work"
    run_sequence(load_config(path), tmp_path / "whole")
    interrupted(monkeypatch, load_config(path), work)
    run_sequence(load_config(write_config(tmp_path, tasks=[task("one")], **changes)), work)
    assert json.loads((work / "versions/v1/training.json").read_text())["resumed_at"] > 0
    assert weights(work, "v1") == weights(tmp_path / "whole", "v1")


def test_rows_of_an_unfinished_task_may_change_only_with_a_restart(tmp_path, monkeypatch):
    path, work = make_project(tmp_path, tasks=[task("one")]), tmp_path / "work"
    interrupted(monkeypatch, load_config(path), work)
    write_rows(tmp_path / "one.jsonl", 3, 24)
    with pytest.raises(CheckpointError, match=r"task `one`, with other rows.*--restart"):
        run_sequence(load_config(path), work)
    run_sequence(load_config(path), work, restart=True)
    run_sequence(load_config(path), tmp_path / "anew")
    assert weights(work, "v1") == weights(tmp_path / "anew", "v1")


def test_an_appended_task_whose_training_was_interrupted_is_pending(tmp_path, monkeypatch):
    work = tmp_path / "work"
    run_sequence(load_config(make_project(tmp_path, tasks=[task("one")])), work)
    interrupted(monkeypatch, load_config(write_config(tmp_path)), work)
    state = status(work)
    assert (state["tasks"], state["pending"], state["begun"]) == (["one", "two"], ["two"], ["two"])


def test_a_workspace_made_with_the_old_default_layers_keeps_them_or_is_refused(tmp_path):
    """Adapters were on `auto` by default; a workspace recorded that value, as it records any."""
    work, preset = tmp_path / "work", {"target_modules": "auto"}
    run_sequence(load_config(make_project(tmp_path, tasks=[task("one")], lora=preset)), work)
    before = tree_hash(work)
    with pytest.raises(ConfigError, match=r"lora.target_modules is 'all-linear', but .* with 'auto'.*Set it to"):
        run_sequence(load_config(write_config(tmp_path)), work)
    assert tree_hash(work) == before
    run_sequence(load_config(write_config(tmp_path, lora=preset)), work)
    assert status(work)["current"] == "v2"


def test_a_task_begun_with_the_old_default_layers_is_not_gone_on_with_on_other_layers(tmp_path, monkeypatch):
    work, preset = tmp_path / "work", {"target_modules": "auto"}
    interrupted(monkeypatch, load_config(make_project(tmp_path, tasks=[task("one")], lora=preset)), work)
    with pytest.raises(CheckpointError, match=r"lora.target_modules = 'auto' \(now 'all-linear'\)"):
        run_sequence(load_config(write_config(tmp_path, tasks=[task("one")])), work)


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        ({"name": "gorp"}, "all-linear"),
        ({"name": "gorp", "mode": "paper"}, "auto"),
        ({"name": "sequential_lora"}, "all-linear"),
    ],
)
def test_the_default_layers_are_recorded_by_name(tmp_path, method, layers):
    config = load_config(write_config(tmp_path, method=method))
    assert config.lora.target_modules is None
    assert effective(config)["lora"]["target_modules"] == layers
