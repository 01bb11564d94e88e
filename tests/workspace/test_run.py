"""A run from YAML to versions: the files on disk, a second run, and that an interruption changes no bit."""

import csv
import json
import math
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from gorp.cli import app
from gorp.data import load_task
from gorp.errors import CheckpointError, ConfigError, DataError, GorpError, ModelError, TrainingError
from gorp.evaluation import AccuracyMatrix, TaskScore, score_task
from gorp.models.files import base_digests
from gorp.models.load import load_model
from gorp.progress import Progress
from gorp.storage import read_json, read_tensors
from gorp.weights.base import BaseWeights
from gorp.weights.delta import unpack_deltas
from gorp.workspace import Workspace, effective, evaluate_version, load_config, plan, run_sequence, status
from gorp.workspace import run as run_module
from gorp.workspace.accepted import portable
from tests.workspace.project import make_project, save_model, task, tree_hash, weights, write_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two tasks, not to be changed: its YAML and its workspace."""
    folder = tmp_path_factory.mktemp("finished")
    path = make_project(folder)
    torch.use_deterministic_algorithms(True)
    run_sequence(load_config(path), folder / "work")
    return path, folder / "work"


def written_matrix(work) -> list[list[float]]:
    """The rows of eval/matrix.csv: base, then after each task."""
    heading, *lines = csv.reader((work / "eval/matrix.csv").read_text().splitlines())
    assert heading == ["after", "one", "two"] and [name for name, *_ in lines] == ["base", "one", "two"]
    return [[float(score) for score in scores] for _, *scores in lines]


def test_a_run_writes_exactly_these_files(finished):
    _, work = finished
    names = {str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()}
    files = ("delta.safetensors", "memory.safetensors", "method.safetensors", "training.json", "version.json")
    assert names == {
        "CURRENT",
        "gorp-workspace.json",
        "config.json",
        "ledger.jsonl",
        "eval/matrix.csv",
        "eval/scores.json",
        "eval/rows/one.json",
        "eval/rows/two.json",
        "versions/v0/version.json",
        *(f"versions/{version}/{file}" for version in ("v1", "v2") for file in files),
        *(f"eval/samples/{version}-{name}.jsonl" for version in ("v0", "v1", "v2") for name in ("one", "two")),
    }
    assert (work / "CURRENT").read_text().split()[0] == "v2"


def test_the_record_describes_where_a_version_comes_from(finished):
    path, work = finished
    record = json.loads((work / "versions/v2/version.json").read_text())
    assert (record["parent"], record["task"], record["contains"], record["seed"]) == ("v1", "two", ["one", "two"], 0)
    assert record["config"] == portable(effective(load_config(path)), path)
    assert str(path.parent) not in json.dumps(record) and record["config"]["model"]["path"] == "./model"
    assert record["base"].items() >= base_digests(path.parent / "model").items()
    assert set(record["metrics"]["scores"]) == {"one", "two"}
    assert 0 <= record["leak"] <= 1e-5 and record["footprint_bytes"] > 0
    assert {"gorp", "torch", "transformers", "peft"} <= set(record["packages"])


def test_the_protected_bases_are_orthonormal_and_their_header_describes_them(finished):
    path, work = finished
    file = work / "versions/v2/memory.safetensors"
    tensors, header = read_tensors(file)
    shapes = {name: tuple(p.shape) for name, p in load_model(load_config(path).model, "cpu")[0].named_parameters()}
    assert tensors
    for name, basis in tensors.items():
        assert basis.dtype == torch.float32 and basis.shape[0] == shapes[name][1]
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1]), atol=1e-5, rtol=0)
    assert [header[key] for key in ("mode", "side", "memory_source", "threshold", "budget")] == [
        "strict",
        "input",
        "inputs",
        0.6,
        0.75,
    ]
    with safe_open(work / "versions/v2/delta.safetensors", framework="pt") as delta:
        assert {key.removesuffix("::left").removesuffix("::right") for key in delta.keys()} <= set(shapes)


def test_the_matrix_equals_the_scores_of_base_plus_delta(finished):
    path, work = finished
    config = load_config(path)
    matrix = written_matrix(work)
    tasks = [load_task(spec) for spec in config.tasks]
    for row, version in enumerate(("v0", "v1", "v2")):
        model, tokenizer = load_model(config.model, "cpu")
        if row:
            BaseWeights(model).load(unpack_deltas(read_tensors(work / f"versions/{version}/delta.safetensors")[0]))
        for column, item in enumerate(tasks):
            asked = {"encoding": config.encoding, "config": config.eval, "likelihood": True}
            score = score_task(model, tokenizer, item, **asked)
            assert score.score == matrix[row][column]
            lines = (work / f"eval/samples/{version}-{item.name}.jsonl").read_text().splitlines()
            assert [json.loads(line) for line in lines] == score.samples


def test_a_second_run_changes_nothing(finished):
    path, work = finished
    before = tree_hash(work)
    run_sequence(load_config(path), work)
    run_sequence(load_config(path), work, restart=True)
    assert tree_hash(work) == before


def test_planning_writes_nothing(tmp_path):
    path = make_project(tmp_path)
    before = tree_hash(tmp_path)
    pending, treatments, total = plan(load_config(path), tmp_path / "work")
    assert pending == ["one", "two"] and total == 56448
    # Tiny T5: pairs of rank 8 on attention (32 x 32) and feed-forward (32 x 64) layers, 4 x 4 cores on cross-attention.
    sizes = {("LoRA", 8 * (32 + 32)), ("LoRA", 8 * (32 + 64)), ("core", 2 * 16)}
    assert {(t.treatment, t.trainable) for t in treatments} == sizes
    assert tree_hash(tmp_path) == before


class Said(Progress):
    """Collects the lines that are printed."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_planning_shows_the_number_of_rows_and_an_example(tmp_path):
    tasks = [task("one"), task("two", eval=None, labels=None, dev_rows=3)]
    path = make_project(tmp_path, tasks=tasks, encoding={"max_prompt_tokens": 40, "max_completion_tokens": 8})
    long = {"text": "green " * 30, "label": "true"}
    with open(tmp_path / "one.jsonl", "a") as file:
        file.write(json.dumps(long) + "\n")
    said = Said()
    plan(load_config(path), tmp_path / "work", progress=said)
    text = "\n".join(said.lines)
    assert "one: 25 training rows, 6 eval rows\n" in text
    assert "one: 1 of 25 prompts of train exceed 40 tokens and lose their middle\n" in text
    assert "two: no eval given: " in text and "two: the label set was taken from train: false, true\n" in text
    first = load_task(load_config(path).tasks[0]).train[0]
    assert f"one: first training row: {first['prompt']!r} → 'true'\n" in text


def test_a_task_that_did_not_get_better_is_named_with_its_answers(tmp_path):
    """Nothing can be learned at a learning rate of 1e-30."""
    idle = {"per_device_train_batch_size": 4, "learning_rate": 1e-30}
    path = make_project(tmp_path, tasks=[task("one", metric=None)], training=idle)
    said = Said()
    matrix = run_sequence(load_config(path), tmp_path / "work", progress=said).matrix
    assert matrix.R[1, 0] == matrix.R[0, 0] == 0
    answers = tmp_path / "work/eval/samples/v1-one.jsonl"
    assert answers.is_file() and said.lines[-1] == (
        "one: the score 0.0 is not higher than before training. Try more epochs or a higher learning rate; the answers "
        f"are in {answers}"
    )


def test_a_task_that_got_better_is_not_named(finished, tmp_path, monkeypatch):
    path, _ = finished
    better = {"v0": 0.0, "v1": 50.0, "v2": 50.0}
    monkeypatch.setattr(
        "gorp.workspace.scoring.score_task",
        lambda model, tokenizer, item, **_: TaskScore(
            task=item.name, metric=item.metric, score=better[current[-1]], rows=6, samples=[]
        ),
    )
    current, original = [], run_module.score_row
    monkeypatch.setattr(
        run_module,
        "score_row",
        lambda session, version, *a, **k: current.append(version) or original(session, version, *a, **k),
    )
    said = Said()
    run_sequence(load_config(path), tmp_path / "work", progress=said)
    assert not [line for line in said.lines if "not higher than before" in line]


def test_evaluating_a_version_again_gives_its_row_again(finished):
    _, work = finished
    matrix = written_matrix(work)
    before = tree_hash(work)
    for row, version in enumerate(("v0", "v1", "v2")):
        result = evaluate_version(work, version=version)
        assert result["version"] == version
        assert [result["scores"][name]["score"] for name in ("one", "two")] == matrix[row]
    assert list(evaluate_version(work, task="two")["scores"]) == ["two"]
    assert tree_hash(work) == before
    with pytest.raises(ConfigError, match=r"no task `tow`.* Did you mean `two`"):
        evaluate_version(work, task="tow")


def test_status_reads_without_a_model(finished):
    _, work = finished
    state = status(work)
    R = np.array(state["matrix"]["R"])
    assert (state["current"], state["pending"]) == ("v2", [])
    assert state["measures"]["ap"] == R[2].mean() and state["measures"]["bwt"] == R[2, 0] - R[1, 0]
    assert state["measures"]["fwt"] == R[1, 1] - R[0, 1]
    assert [version["version"] for version in state["versions"]] == ["v0", "v1", "v2"]


def test_status_shows_for_each_task_how_much_is_protected_and_how_far_its_outputs_have_moved(finished):
    _, work = finished
    state = status(work)
    told = [version["earlier"] and list(version["earlier"]) for version in state["versions"]]
    assert told == [None, ["one"], ["one", "two"]]
    last = state["versions"][-1]["earlier"]
    result = CliRunner().invoke(app, ["status", str(work)])
    assert result.exit_code == 0, result.output
    for name, entry in last.items():
        cells = f"{100 * entry['coverage']:.1f} % +{100 * entry['output_change']:.1f} %"
        assert re.search(f"{name}: .* {cells} *\n", result.stdout)
    assert last["one"]["output_change"] > 0.0 == last["two"]["output_change"]


def test_status_of_an_older_workspace_without_these_numbers_shows_none(finished, monkeypatch):
    _, work = finished

    def as_then(path):
        return {key: value for key, value in read_json(path).items() if key != "earlier"}

    monkeypatch.setattr("gorp.workspace.version.read_json", as_then)
    assert [version["earlier"] for version in status(work)["versions"]] == [None] * 3
    result = CliRunner().invoke(app, ["status", str(work)])
    assert result.exit_code == 0 and "outputs moved" not in result.stdout and "just learned" in result.stdout


@pytest.mark.parametrize("method", ["sequential_lora", "ewc", "olora", "sequential_full", "gorp"])
def test_two_runs_of_one_task_end_as_one_run_of_both(tmp_path, method):
    """The next task needs nothing but the state on disk."""
    block = {"name": method} | ({"fisher_examples": 4} if method == "ewc" else {})
    path = make_project(tmp_path, family="llama" if method == "olora" else "t5", method=block)
    run_sequence(load_config(path), tmp_path / "whole")
    run_sequence(load_config(write_config(tmp_path, method=block, tasks=[task("one")])), tmp_path / "parts")
    matrix = run_sequence(load_config(write_config(tmp_path, method=block)), tmp_path / "parts").matrix
    assert weights(tmp_path / "parts", "v2") == weights(tmp_path / "whole", "v2")
    assert matrix.to_dict() == AccuracyMatrix.from_dict(status(tmp_path / "whole")["matrix"]).to_dict()
    assert not np.isnan(matrix.R).any()  # the new task's column was filled in for v0 and v1


class Stop(Exception):
    """Raised where the process is to end."""


@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("score_row", 1),  # before v0
        ("write_state", 1),  # trained, not written
        ("sealed", 1),  # tensors written, training.json not
        ("score_row", 2),  # training.json written, not scored
        ("version_record", 2),
        ("Workspace.publish", 2),
        ("Workspace.settle", 1),
        ("Workspace.settle", 2),
        ("Workspace.log", 3),  # version.json written, not renamed
        ("Workspace.log", 4),  # CURRENT written, ledger not
        ("train_task", 2),
    ],
)
def test_a_run_that_ended_anywhere_is_continued_to_the_same_result(finished, tmp_path, monkeypatch, where, call):
    path, whole = finished
    owner, name = (Workspace, where.split(".")[1]) if "." in where else (run_module, where)
    original, calls = getattr(owner, name), []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Stop
        return original(*args, **kwargs)

    work = tmp_path / "work"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(owner, name, stopping)
        run_sequence(load_config(path), work)
    if (work / "CURRENT").exists():
        status(work)
    run_sequence(load_config(path), work)
    for version in ("v1", "v2"):
        assert weights(work, version) == weights(whole, version)
    assert (work / "eval/matrix.csv").read_bytes() == (whole / "eval/matrix.csv").read_bytes()
    assert not list((work / "run").rglob("*.*")) and not list((work / "versions").glob(".tmp*"))
    assert [e["version"] for e in Workspace(work).ledger() if e["event"] == "version"] == ["v0", "v1", "v2"]


def test_a_finished_training_is_not_repeated(finished, tmp_path, monkeypatch):
    path, _ = finished
    trained, original = [], run_module.train_task
    monkeypatch.setattr(
        run_module, "train_task", lambda *a, name, **k: trained.append(name) or original(*a, name=name, **k)
    )
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(
            Workspace, "publish", lambda self, name, record: stop() if name == "v1" else publish(self, name, record)
        )
        run_sequence(load_config(path), tmp_path / "work")
    run_sequence(load_config(path), tmp_path / "work")
    assert trained == ["one", "two"]


publish = Workspace.publish


def stop() -> None:
    raise Stop


def test_a_joint_method_trains_once_on_all_tasks(tmp_path):
    path = make_project(tmp_path, method={"name": "multi_task"})
    matrix = run_sequence(load_config(path), tmp_path / "work").matrix
    assert np.isnan(matrix.R[1]).all() and not np.isnan(matrix.R[[0, 2]]).any()
    assert Workspace(tmp_path / "work").current().contains == ["one", "two"]
    training = json.loads((tmp_path / "work/versions/v1/training.json").read_text())
    assert training["steps"] == 48 // 4
    assert status(tmp_path / "work")["measures"]["bwt"] is None


def test_a_joint_method_starts_from_the_base_model_again_when_a_task_is_added(tmp_path):
    block = {"name": "multi_task"}
    run_sequence(load_config(make_project(tmp_path, method=block)), tmp_path / "whole")
    run_sequence(load_config(write_config(tmp_path, method=block, tasks=[task("one")])), tmp_path / "work")
    run_sequence(load_config(write_config(tmp_path, method=block)), tmp_path / "work")
    current = Workspace(tmp_path / "work").current()
    assert (current.name, current.record["parent"]) == ("v2", "v0")
    assert weights(tmp_path / "work", "v2") == weights(tmp_path / "whole", "v1")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A workspace that has learned the first of two tasks: folder of the YAML, workspace, hash."""
    folder = tmp_path_factory.mktemp("begun")
    torch.use_deterministic_algorithms(True)
    run_sequence(load_config(make_project(folder, tasks=[task("one")])), folder / "work")
    return folder, folder / "work", tree_hash(folder / "work")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed is 1, but the learned tasks of this workspace were trained with 0"),
        ({"method": {"name": "gorp", "rank": 2, "refresh_every": 3}}, "method.rank is 2"),
        ({"method": {"name": "ewc"}}, "method.name is 'ewc'"),
        ({"lora": {"r": 2}}, "lora.r is 2"),
        ({"method": {"name": "gorp", "rank": 4, "refresh_every": 3, "mode": "paper"}}, "method.mode is 'paper'"),
        ({"model": {"path": "model", "dtype": "bfloat16"}}, "model.dtype is 'bfloat16'"),
        ({"tasks": [task("two"), task("one")]}, "Add new tasks after the learned ones"),
        ({"tasks": [task("one", labels=["false", "true"])]}, "tasks[0].labels is ['false', 'true']"),
    ],
)
def test_a_setting_that_learned_tasks_depend_on_may_not_change(begun, changes, message):
    folder, work, before = begun
    path = write_config(folder, **({"tasks": [task("one"), task("two")]} | changes))
    with pytest.raises(ConfigError) as caught:
        run_sequence(load_config(path), work)
    assert message in str(caught.value)
    assert tree_hash(work) == before


def test_another_base_model_is_refused(begun):
    folder, work, before = begun
    save_model(folder / "other", seed=1)
    with pytest.raises(CheckpointError, match="belongs to another base model"):
        run_sequence(load_config(write_config(folder, model={"path": "other"})), work)
    assert tree_hash(work) == before


def test_eval_settings_may_change_and_only_affected_scores_are_measured_again(tmp_path, monkeypatch):
    path = make_project(tmp_path)
    run_sequence(load_config(path), tmp_path / "work")
    scored = []
    monkeypatch.setattr("gorp.workspace.scoring.score_task", lambda *a, **k: scored.append(1) or score_task(*a, **k))
    run_sequence(load_config(write_config(tmp_path, eval={"max_new_tokens": 4, "batch_size": 2})), tmp_path / "work")
    assert not scored
    run_sequence(load_config(write_config(tmp_path, eval={"max_new_tokens": 4, "limit": 3})), tmp_path / "work")
    assert len(scored) == 6
    assert status(tmp_path / "work")["matrix"]["rows"] == {"one": 3, "two": 3}


def test_weights_that_are_not_finite_are_neither_saved_nor_added_to_the_delta(tmp_path):
    """The loss of the last step is still finite, but its update is not."""
    hopeless = {"per_device_train_batch_size": 4, "learning_rate": 1e39, "max_steps": 1}
    method = {"name": "sequential_full"}
    for name, save in (("kept", {"save_steps": 1}), ("folded", {"save_strategy": "no"})):
        path = make_project(tmp_path, training=hopeless | save, method=method)
        with pytest.raises(TrainingError, match="no longer finite after step 1 of task `one`"):
            run_sequence(load_config(path), tmp_path / name)
        assert [version.name for version in Workspace(tmp_path / name).versions()] == ["v0"]
        assert not list((tmp_path / name).rglob("complete.json"))


def test_a_loss_that_is_not_finite_leaves_all_versions_whole(tmp_path):
    hopeless = {"per_device_train_batch_size": 4, "learning_rate": 1e30, "save_strategy": "no", "max_grad_norm": 0}
    path = make_project(tmp_path, training=hopeless, method={"name": "sequential_full"})
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ of task `one`"):
        run_sequence(load_config(path), tmp_path / "work")
    assert [version.name for version in Workspace(tmp_path / "work").versions()] == ["v0"]
    before = tree_hash(tmp_path / "work")
    with pytest.raises(TrainingError):
        run_sequence(load_config(path), tmp_path / "work")
    assert tree_hash(tmp_path / "work") == before
    state = status(tmp_path / "work")
    assert state["pending"] == ["one", "two"] and state["measures"] == {} and not math.isnan(state["matrix"]["R"][0][0])


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"lora": {"target_modules": ["q_prj"]}}, ModelError, "lora.target_modules: `q_prj` matches no linear"),
        ({"method": {"name": "gorp", "full_modules": ["wj"]}}, ModelError, "method.full_modules: `wj` matches no"),
        ({"model": {"path": "./nothing"}}, ModelError, "no such folder"),
        ({"encoding": {"max_completion_tokens": 1}}, DataError, "row 0 (counted from 0) of the training rows"),
        ({"training": {"optim": "adamw_bnb_8bt"}}, ConfigError, "adamw_bnb_8bt"),
        ({"training": {"lr_scheduler_type": "constnt"}}, ConfigError, "constnt"),
        ({"tasks": [task("one", labels=["true"])]}, DataError, "one.jsonl, line 2: label `false` is not one of"),
        ({"tasks": [task("one"), task("three")]}, DataError, "three.jsonl"),
    ],
)
def test_invalid_input_is_refused_before_anything_is_written(tmp_path, changes, kind, message):
    path = make_project(tmp_path, **changes)
    before = tree_hash(tmp_path)
    with pytest.raises(GorpError) as caught:
        run_sequence(load_config(path), tmp_path / "work")
    assert isinstance(caught.value, kind) and message in str(caught.value)
    assert tree_hash(tmp_path) == before
