"""`gorp eval` scores with the current configuration."""

import json
import shutil

import pytest

from gorp.errors import CheckpointError, ConfigError
from gorp.evaluation import TaskScore
from gorp.progress import Progress
from gorp.workspace import evaluate_version, load_config, run_sequence
from gorp.workspace.scores import Scores
from tests.workspace.project import make_project, task, without_digests, write_config, write_rows


@pytest.fixture
def trained(tmp_path):
    """A workspace that has learned one task."""
    run_sequence(load_config(make_project(tmp_path, tasks=[task("one")])), tmp_path / "work")
    return tmp_path


class Said(Progress):
    """Collects the lines that are printed."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def rows_scored(folder, progress=None):
    return evaluate_version(folder / "work", progress=progress)["scores"]["one"]["rows"]


def test_eval_reads_the_current_yaml(trained):
    assert rows_scored(trained) == 6
    write_config(trained, tasks=[task("one")], eval={"limit": 4})
    assert rows_scored(trained) == 4


def swap_tokens(folder):
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    first, second = (300, 301) if isinstance(vocabulary, list) else sorted(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(values))


def change_norm(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_norm_epsilon": 0.1}))


@pytest.mark.parametrize(("change", "what"), [(swap_tokens, "tokenizer"), (change_norm, r"config\.json")])
def test_a_changed_part_of_the_base_model_is_refused(trained, change, what):
    change(trained / "model")
    with pytest.raises(
        CheckpointError, match=f"the base model has the same weights as before, but its {what} has changed"
    ):
        evaluate_version(trained / "work")
    config = load_config(write_config(trained))
    with pytest.raises(
        CheckpointError, match=f"the base model has the same weights as before, but its {what} has changed"
    ):
        run_sequence(config, trained / "work")


def test_a_version_without_those_digests_is_scored_unchecked(trained):
    without_digests(trained / "work")
    for path in (trained / "work" / "versions").glob("*/version.json"):
        record = json.loads(path.read_text())
        record["base"] = {key: record["base"][key] for key in ("path", "revision", "sha256")}
        path.write_text(json.dumps(record))
    assert rows_scored(trained) == 6


def test_eval_rows_may_move_to_another_file(trained):
    (trained / "one_eval.jsonl").rename(trained / "held_out.jsonl")
    write_config(trained, tasks=[task("one", eval="held_out.jsonl")])
    assert rows_scored(trained) == 6


def test_without_the_yaml_the_configuration_of_the_last_run_is_used(trained):
    run_sequence(load_config(write_config(trained, tasks=[task("one")], eval={"limit": 3})), trained / "work")
    (trained / "run.yaml").unlink()
    assert rows_scored(trained) == 3
    (trained / "work/config.json").unlink()  # then the configuration that CURRENT was trained with
    assert rows_scored(trained) == 6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": {"name": "ewc"}}, "method.name is 'ewc'"),
        ({"tasks": [task("two")]}, "Add new tasks after"),
        ({"model": {"path": "gorp-tiny-t5"}}, "model.path is gorp-tiny-t5"),
        ({"evil": {}}, "evil: unknown key"),
    ],
)
def test_a_yaml_that_no_longer_fits_is_not_used_and_that_is_reported(trained, changes, reason):
    write_config(trained, **({"tasks": [task("one")], "eval": {"limit": 2}} | changes))
    said = Said()
    assert rows_scored(trained, said) == 6
    assert any(reason in line and "no longer fits" in line for line in said.lines)


def test_a_task_not_learned_yet_is_scored_too(trained):
    write_rows(trained / "two.jsonl", 2, 24)
    write_config(trained)
    assert set(evaluate_version(trained / "work")["scores"]) == {"one", "two"}
    assert json.loads((trained / "work/eval/scores.json").read_text())["v1"]["two"]["rows"] == 6


def custom_model(folder):
    """Give a model folder Python code of its own, which creates the file `ran` when it runs."""
    (folder / "evil.py").write_text(
        f"open({str(folder.parent / 'ran')!r}, 'w')\nfrom transformers import T5Config\nclass Evil(T5Config): pass\n"
    )
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoConfig": "evil.Evil"}}))


def test_a_workspace_cannot_allow_code_to_run(trained, tmp_path):
    """Neither its config.json nor a YAML found through it or beside it may: they may come from the same stranger."""
    custom_model(trained / "model")
    kept = trained / "work/config.json"
    model = {"path": "model", "trust_remote_code": True}
    value = json.loads(kept.read_text())
    value["config"]["model"] |= {"path": "./model", "trust_remote_code": True}
    del value["digest"]  # an attacker could compute it
    kept.write_text(json.dumps(value))
    write_config(trained, tasks=[task("one")], model=model)
    moved = trained / "work.yaml"
    for change in (lambda: None, lambda: (trained / "run.yaml").rename(moved), moved.unlink):
        change()
        with pytest.raises(ConfigError, match=r"trust_remote_code is true, but .*--trust-remote-code"):
            evaluate_version(trained / "work")
        assert not (trained / "ran").exists()


def test_a_copied_project_uses_its_own_files(trained, tmp_path):
    """YAML, rows and model of the copy are read, never those of the original folder, whether they exist or not."""
    there = tmp_path / "copy"
    shutil.copytree(trained, there, ignore=shutil.ignore_patterns("copy"))
    write_config(there, tasks=[task("one")], eval={"limit": 2})
    said = Said()
    assert rows_scored(there, said) == 2 and f"configuration: {there / 'run.yaml'}" in said.lines
    write_config(there, tasks=[task("one")], eval={"limit": 3}).rename(there / "work.yaml")
    assert rows_scored(there) == 3  # the one beside it, of its name
    (there / "work.yaml").unlink()
    for name in ("run.yaml", "one_eval.jsonl", "model"):
        (trained / name).rename(trained / f"{name}.old")
    assert rows_scored(there, said) == 6 and any("that of the last `gorp train`" in line for line in said.lines)
    assert str(trained) not in (there / "work/config.json").read_text()


def test_a_copied_project_of_gorp_0_1_0_uses_its_own_files(trained, tmp_path):
    without_digests(trained / "work")
    there = tmp_path / "copy"
    shutil.copytree(trained, there, ignore=shutil.ignore_patterns("copy"))
    write_config(there, tasks=[task("one")], eval={"limit": 2})
    assert rows_scored(there) == 2


def test_no_score_is_lost_when_several_processes_write(tmp_path):
    """Each process reads the table first, and later adds its score to the table as it is then."""
    tables = [Scores(tmp_path / "eval") for _ in range(4)]
    for number, table in enumerate(tables):  # each was read before any other wrote
        score = TaskScore(task=f"t{number}", metric="m", score=float(number), rows=1, samples=[])
        table.add("v0", score, "k", "c")
    assert set(Scores(tmp_path / "eval").cells["v0"]) == {"t0", "t1", "t2", "t3"}
