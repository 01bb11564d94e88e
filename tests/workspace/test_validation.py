"""`validate` lists all problems, checks what a dry run checks, and writes nothing."""

import json

import pytest

from gorp.errors import ConfigError
from gorp.workspace import load_config, plan, validate
from tests.workspace.project import make_project, task, tree_hash


def test_a_whole_configuration_has_no_problems_and_the_result_of_the_dry_run(tmp_path):
    project = make_project(tmp_path)
    before = tree_hash(tmp_path)
    found = validate(project)
    pending, treatments, total = plan(load_config(project), project.with_suffix(""))
    assert (found["problems"], found["pending"], found["parameters"]) == ([], pending, total)
    assert found["trainable"] == sum(item.trainable for item in treatments)
    assert list(found["tasks"]) == ["one", "two"] and json.loads(json.dumps(found))["invalid"] is False
    assert tree_hash(tmp_path) == before


def test_all_problems_of_the_yaml_are_listed(tmp_path):
    changes = {
        "model": {"path": "model", "dtype": "int3"},
        "method": {"name": "gorq"},
        "encoding": {"max_prompt_tokens": 0},
        "tasks": [task("one", metric="f1"), task("two"), task("three", dev_rows=-1)],
        "seeds": 1,
    }
    found = validate(make_project(tmp_path, **changes))
    text = "\n".join(found["problems"])
    assert found["invalid"] and len(found["problems"]) == 6
    for part in ("int3", "Did you mean `gorp`", "max_prompt_tokens", "tasks[0]", "tasks[2]", "seeds: unknown key"):
        assert part in text
    assert all(problem.startswith(str(tmp_path / "run.yaml")) for problem in found["problems"])


def test_margins_of_single_tasks_are_checked_with_the_names_of_the_yaml(tmp_path):
    assert validate(make_project(tmp_path, gate={"margins": {"one": 5}}))["problems"] == []
    changes = {"gate": {"margins": {"oen": 5}}, "eval": {"batch_size": 0}, "tasks": [task("one"), task("two", limit=3)]}
    problems = "\n".join(validate(make_project(tmp_path, **changes))["problems"])
    for part in ("no task `oen` in `tasks:`; there are one, two", "batch_size", "tasks[1].limit"):
        assert part in problems


def test_what_is_wrong_between_blocks_is_found_when_each_is_right(tmp_path):
    [problem] = validate(make_project(tmp_path, tasks=[task("one"), task("ONE")]))["problems"]
    assert "two tasks are called `one` and `ONE`" in problem


def test_problems_of_the_rows_of_all_tasks_are_listed(tmp_path):
    project = make_project(tmp_path)
    (tmp_path / "one.jsonl").write_text('{"text": "a", "label": "true"}\n{"text": 3, "label": "true"}\n7\n')
    (tmp_path / "two_eval.jsonl").unlink()
    found = validate(project)
    assert [problem.partition(": ")[0].rpartition("/")[2] for problem in found["problems"]] == [
        "two_eval.jsonl",
        "one.jsonl, line 2",
        "one.jsonl, line 3",
    ] and not found["invalid"]


def test_what_only_the_dry_run_sees_is_a_problem_too(tmp_path):
    found = validate(make_project(tmp_path, lora={"target_modules": ["no_such_layer"]}))
    [problem] = found["problems"]
    assert "no_such_layer" in problem


def test_large_rows_are_not_loaded(tmp_path, monkeypatch):
    project = make_project(tmp_path)
    monkeypatch.setattr("gorp.workspace.validation.LARGE", 100)
    monkeypatch.setattr("gorp.workspace.validation.plan", lambda *_, **__: pytest.fail("the rows were loaded"))
    found = validate(project)
    assert found["problems"] == [] and "only read one by one" in found["warnings"][-1]


def test_a_file_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("tasks:\n\t- x\n")
    with pytest.raises(ConfigError, match="not YAML"):
        validate(tmp_path / "run.yaml")
