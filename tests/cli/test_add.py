"""`gorp init`, `gorp add` and `gorp validate` print what was found, and exit with 1 or 2 for problems."""

import json
from pathlib import Path

import pytest

from tests.command import gorp
from tests.workspace.project import make_project, save_model, task, write_rows


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    write_rows(tmp_path / "one.jsonl", 1, 24)
    write_rows(tmp_path / "two.jsonl", 2, 24)
    return tmp_path


def test_from_files_to_a_checked_yaml(here):
    done = gorp("init", "model", "one.jsonl")
    assert done.exit_code == 0 and "one   text_label  one.jsonl" in done.stdout
    done = gorp("add", "two", "two.jsonl")
    assert done.exit_code == 0, done.output
    for part in ("two: text_label, scored by exact_match", "24, 4 of them eval", "12 (50 %)", "tokens read"):
        assert part in done.stdout
    assert done.stdout.endswith("bot.yaml: added  - {name: two, train: two.jsonl}\n")
    done = gorp("validate")
    assert done.exit_code == 0 and done.stdout.endswith("bot.yaml: no problems; pending tasks: one, two\n")


def test_json_is_one_object_and_a_dry_run_writes_nothing(here):
    assert json.loads(gorp("init", "model", "one.jsonl", "--dry-run", "--json").stdout)["written"] is False
    assert not Path("bot.yaml").exists()
    assert json.loads(gorp("init", "model", "one.jsonl", "--json").stdout)["written"] is True
    before = Path("bot.yaml").read_bytes()
    found = json.loads(gorp("add", "two", "two.jsonl", "--dry-run", "--json").stdout)
    assert found["problems"] == [] and found["written"] is False and Path("bot.yaml").read_bytes() == before
    assert "would get" in gorp("add", "two", "two.jsonl", "--dry-run").stdout
    assert json.loads(gorp("validate", "--json").stdout)["pending"] == ["one"]


def test_problems_are_printed_and_decide_the_exit_code(here):
    gorp("init", "model", "one.jsonl")
    Path("two.jsonl").write_text('{"text": "a", "label": "b"}\n7\n')
    before = Path("bot.yaml").read_bytes()
    done = gorp("add", "two", "two.jsonl")
    assert done.exit_code == 1 and "line 2: a number" in done.stdout
    assert done.stderr.endswith("gorp: two was not added to bot.yaml\n") and Path("bot.yaml").read_bytes() == before
    assert gorp("add", "one", "one.jsonl").exit_code == 2
    done = gorp("validate", make_project(here / "other", seed=-1, tasks=[task("one", metric="f1")]))
    assert done.exit_code == 2 and done.stderr.endswith("run.yaml has 2 problems\n")


def test_text_of_rows_cannot_control_the_terminal(here):
    gorp("init", "model", "one.jsonl")
    evil = "\x1b[31mred\u202e"
    rows = [{"text": f"{evil} {n}", "label": f"red {evil}", f"{evil}x": evil} for n in range(12)]
    Path("two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for arguments in (["--json"], []):
        done = gorp("add", "two", "two.jsonl", "--dry-run", *arguments)
        assert "red" in done.stdout and not {"\x1b", "\u202e"} & set(done.output)


@pytest.mark.parametrize("text", ["tasks: {order: order1, data: x}", "tasks:\n\t- {}", "seed: 1"])
def test_a_yaml_that_no_task_can_be_added_to_exits_with_2_and_stays(here, text):
    gorp("init", "model", "one.jsonl")
    whole = Path("bot.yaml").read_text().partition("tasks:")[0] + text
    Path("bot.yaml").write_text(whole)
    assert gorp("add", "two", "two.jsonl").exit_code == 2
    assert Path("bot.yaml").read_text() == whole
