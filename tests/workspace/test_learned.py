"""A learned task needs its eval rows, and none of its training rows."""

import json
import shutil
from contextlib import nullcontext

import pytest

from gorp.errors import CheckpointError, ConfigError, DataError
from gorp.progress import Progress
from gorp.storage import file_sha256
from gorp.workspace import evaluate_version, load_config, plan, run_sequence, status
from gorp.workspace import run as run_module
from tests.workspace.project import make_project, task, weights, write_config, write_rows


class Said(Progress):
    """Collects the lines that are printed."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A project whose first task is learned, and the same with both tasks learned; no test writes into them."""
    folder = tmp_path_factory.mktemp("learned")
    run_sequence(load_config(make_project(folder / "one", tasks=[task("one")])), folder / "one/work")
    run_sequence(load_config(make_project(folder / "both")), folder / "both/work")
    return folder


@pytest.fixture
def project(learned, tmp_path):
    """A copy of the project whose first task is learned."""
    shutil.copytree(learned / "one", tmp_path / "project")
    return tmp_path / "project"


def test_the_next_task_needs_no_training_row_of_an_earlier_one(project, learned):
    (project / "one.jsonl").unlink()
    said, path = Said(), write_config(project)
    plan(load_config(path), project / "work")
    matrix = run_sequence(load_config(path), project / "work", progress=said).matrix
    assert [
        line
        for line in said.lines
        if line.endswith("one.jsonl no longer exists; it is not needed, because the task is learned")
    ]
    assert weights(project / "work", "v2") == weights(learned / "both/work", "v2")
    assert matrix.to_dict() == status(learned / "both/work")["matrix"]
    record, whole = (
        json.loads((folder / "work/versions/v2/version.json").read_text())["tasks"]["one"]
        for folder in (project, learned / "both")
    )
    assert record | {"source": ""} == whole | {"source": ""}
    evaluate_version(project / "work", task="one")


def test_stored_eval_rows_are_used_if_the_eval_file_was_deleted(project):
    before = status(project / "work")["matrix"]["R"][1][0]
    (project / "one_eval.jsonl").unlink()
    said = Said()
    run_sequence(load_config(write_config(project, tasks=[task("one")])), project / "work", progress=said)
    assert any("one_eval.jsonl no longer exists; the 6 stored rows are used" in line for line in said.lines)
    assert evaluate_version(project / "work")["scores"]["one"] == {
        "score": before,
        "rows": 6,
        "metric": "label_ranking",
    }


def test_eval_rows_that_were_split_from_train_are_stored(tmp_path):
    cut = task("one", eval=None)
    run_sequence(load_config(make_project(tmp_path, tasks=[cut])), tmp_path / "work")
    before = status(tmp_path / "work")["matrix"]
    (tmp_path / "one.jsonl").unlink()
    run_sequence(load_config(write_config(tmp_path, tasks=[cut, task("two")])), tmp_path / "work")
    after = status(tmp_path / "work")["matrix"]
    assert [row[0] for row in after["R"][:2]] == [row[0] for row in before["R"]]
    assert after["rows"]["one"] == before["rows"]["one"] == 4


def test_eval_rows_may_grow_and_all_versions_are_scored_again(project):
    with open(project / "one_eval.jsonl", "a") as file:
        file.write(json.dumps({"text": "green light 99", "label": "true"}) + "\n")
    said = Said()
    run_sequence(load_config(write_config(project, tasks=[task("one")])), project / "work", progress=said)
    assert any("one: its eval rows changed (6 rows before, 7 now)" in line for line in said.lines)
    cells = json.loads((project / "work/eval/scores.json").read_text())
    assert [cells[version]["one"]["rows"] for version in ("v0", "v1")] == [7, 7]
    again = Said()
    run_sequence(load_config(write_config(project, tasks=[task("one")])), project / "work", progress=again)
    assert not any("changed" in line for line in again.lines)


def test_changed_training_rows_of_a_learned_task_are_not_trained_and_that_is_reported(project, learned):
    write_rows(project / "one.jsonl", 3, 24)
    said = Said()
    run_sequence(load_config(write_config(project)), project / "work", progress=said)
    assert any("one.jsonl has changed since it was learned; a learned task is not" in line for line in said.lines)
    assert weights(project / "work", "v2") == weights(learned / "both/work", "v2")


def test_damaged_stored_rows_are_read_again_or_reported(project):
    kept = project / "work/eval/rows/one.json"
    kept.write_text(kept.read_text().replace("light 3", "light 4"))
    path = write_config(project, tasks=[task("one")])
    run_sequence(load_config(path), project / "work")
    assert "light 3" in kept.read_text()
    kept.write_text(kept.read_text().replace("light 3", "light 4"))
    (project / "one_eval.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"one\.json: the stored eval rows are damaged.*`eval:`"):
        plan(load_config(path), project / "work")


def test_a_joint_method_needs_the_rows_of_every_task(tmp_path):
    block = {"name": "multi_task"}
    path = make_project(tmp_path, method=block, tasks=[task("one")])
    run_sequence(load_config(path), tmp_path / "work")
    (tmp_path / "one.jsonl").unlink()
    run_sequence(load_config(path), tmp_path / "work")
    with pytest.raises(DataError, match=r"one\.jsonl: no such file.*`multi_task` trains on the rows of all tasks"):
        run_sequence(load_config(write_config(tmp_path, method=block)), tmp_path / "work")


def test_the_record_has_the_digest_of_the_training_file_as_it_was_read(tmp_path, monkeypatch):
    path = make_project(tmp_path)
    digests = {name: file_sha256(tmp_path / f"{name}.jsonl") for name in ("one", "two")}
    original = run_module.train_task

    def edited(*args, name, **options):
        write_rows(tmp_path / f"{name}.jsonl", 3, 12)  # while it trains
        return original(*args, name=name, **options)

    monkeypatch.setattr(run_module, "train_task", edited)
    run_sequence(load_config(path), tmp_path / "work")
    for version in ("v1", "v2"):
        tasks = json.loads((tmp_path / f"work/versions/{version}/version.json").read_text())["tasks"]
        assert {name: tasks[name]["train_sha256"] for name in tasks} == digests
    said = Said()
    plan(load_config(path), tmp_path / "work", progress=said)
    assert sum("has changed since it was learned" in line for line in said.lines) == 2


def test_lost_stored_rows_are_split_from_train_again_and_stored(tmp_path):
    cut = task("one", eval=None)
    run_sequence(load_config(make_project(tmp_path, tasks=[cut])), tmp_path / "work")
    kept = tmp_path / "work/eval/rows/one.json"
    content = kept.read_text()
    kept.unlink()
    run_sequence(load_config(write_config(tmp_path, tasks=[cut])), tmp_path / "work")
    assert json.loads(kept.read_text())["rows"] == json.loads(content)["rows"]
    (tmp_path / "one.jsonl").unlink()
    plan(load_config(write_config(tmp_path, tasks=[cut, task("two")])), tmp_path / "work")


def test_scores_under_other_conditions_are_left_out_of_the_matrix(project):
    work = project / "work"
    whole = status(work)["matrix"]["R"]
    path = write_config(project, tasks=[task("one")], eval={"max_new_tokens": 4, "limit": 2})
    evaluate_version(work, source=path)
    state = status(work)
    assert state["matrix"]["R"][0] == [None] and state["matrix"]["rows"] == {"one": 2}
    assert any(line.startswith("one: the scores of v0 are left out") for line in state["remarks"])
    run_sequence(load_config(write_config(project, tasks=[task("one")])), work)
    assert (status(work)["matrix"]["R"], status(work)["remarks"]) == (whole, [])


def test_scoring_needs_no_row_of_a_task_that_is_not_learned_yet(project):
    said, path = Said(), write_config(project)
    (project / "two.jsonl").unlink()
    assert list(evaluate_version(project / "work", source=path, progress=said)["scores"]) == ["one"]
    assert any(line.startswith("two: not learned yet, and not scored, because ") for line in said.lines)
    with pytest.raises(DataError, match=r"two\.jsonl: no such file"):
        evaluate_version(project / "work", source=path, task="two")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"method": {"name": "gorp", "rank": 2, "refresh_every": 3}}, "method.rank is 2, and was 4"),
        ({"lora": {"r": 2}}, "lora.r is 2, and was 8"),
        ({"seed": 1}, "seed is 1, and was 0"),
        ({"method": {"name": "gorp", "rank": 4, "refresh_every": 5}, "lora": {"lora_dropout": 0.1}}, None),
    ],
)
def test_status_and_training_agree_on_whether_the_yaml_still_fits(project, changes, problem):
    path = write_config(project, **changes)
    told = status(project / "work", config=path)["problem"]
    assert told is None if problem is None else problem in told
    with nullcontext() if problem is None else pytest.raises(ConfigError):
        plan(load_config(path), project / "work")
