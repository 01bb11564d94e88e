"""`add_task` checks the rows and appends the task; what it says about rows is what training does with them."""

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest
import yaml

from gorp.data import TaskSpec, load_task
from gorp.errors import ConfigError
from gorp.progress import Progress
from gorp.workspace import add_task, load_config, run_sequence, validate
from gorp.workspace.add import find_config
from gorp.workspace.check_rows import check_rows
from gorp.workspace.store import Workspace
from gorp.workspace.yaml_file import read_text
from tests.workspace.project import make_project, tree_hash, write_rows


def rows_file(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


@pytest.fixture
def project(tmp_path):
    """A YAML with two tasks."""
    return make_project(tmp_path)


def test_a_task_is_added_with_what_was_found_in_its_rows(project):
    folder = project.parent
    write_rows(folder / "three.jsonl", 3, 24)
    text = [f"{word} evening {n}" for n in range(3) for word in ("early", "late")]
    labels = ["true", "false"] * 3
    rows_file(folder / "three_eval.jsonl", [{"text": t, "label": a} for t, a in zip(text, labels, strict=True)])
    before = yaml.safe_load(project.read_text())
    project.chmod(0o640)
    found = add_task(project, "three", str(folder / "three.jsonl"), evaluation=str(folder / "three_eval.jsonl"))
    entry = {"name": "three", "train": "three.jsonl", "eval": "three_eval.jsonl"}
    assert yaml.safe_load(project.read_text()) == before | {"tasks": [*before["tasks"], entry]}
    assert stat.S_IMODE(project.stat().st_mode) == 0o640
    assert (found["written"], found["problems"], found["warnings"]) == (True, [], [])
    [(name, facts)] = found["tasks"].items()
    assert (name, facts["format"], facts["labels"]) == ("three", "text_label", ["false", "true"])
    assert (facts["train"]["rows"], facts["eval"]["rows"], facts["train"]["unit"]) == (24, 6, "line")
    assert facts["train"]["answers"] == {"true": 12, "false": 12} and facts["eval"]["answers"] == {
        "true": 3,
        "false": 3,
    }
    assert facts["train"]["tokens"]["all_rows"] and facts["train"]["tokens"]["rows"] == 24
    assert facts["example"]["prompt"] == "Option: false, true\nearly light 0\nAnswer:"
    assert "true" in "".join(facts["example"]["trained"]).replace(" ", "").lower()
    assert load_config(project).tasks[-1].train == str(folder / "three.jsonl")


def test_the_rows_that_will_be_split_off_are_named_and_no_leak(project):
    folder = project.parent
    rows = [pair(f"question {n % 40}", f"answer {n % 7}") for n in range(60)]
    found = add_task(project, "three", rows_file(folder / "three.jsonl", rows), dry_run=True)
    task = load_task(TaskSpec(name="three", train=str(folder / "three.jsonl")))
    lines = found["tasks"]["three"]["train"]["split_off"]
    assert [rows[line - 1] for line in lines] == [pair(*row.values()) for row in task.eval.to_list()]
    assert found["tasks"]["three"]["overlaps"] == {} and "three" not in project.read_text()


def test_copies_conflicts_and_leaks_are_warnings_with_line_numbers(project):
    folder = project.parent
    rows = [
        pair("a", "x"),
        pair("b", "y"),
        pair("a", "x"),
        pair("b", "z"),
        pair("c  d\n", "x"),
        pair("green light 0", "x"),
    ]
    train = rows_file(folder / "three.jsonl", rows)
    held_out = rows_file(folder / "t.jsonl", [pair("c d", "x"), pair("e", "never")])
    found = add_task(project, "three", train, evaluation=held_out)
    facts = found["tasks"]["three"]
    assert facts["train"]["duplicates"] == {"count": 1, "lines": [(3, 1)]}
    assert facts["train"]["conflicts"] == {"count": 1, "lines": [(2, 4)]}
    assert facts["overlaps"] == {
        "one": {"rows": 1, "lines": [(6, 1)], "eval_rows": 1},
        "three": {"rows": 1, "lines": [(5, 1)], "eval_rows": 1},
    }
    text = "\n".join(found["warnings"])
    for part in (
        "line 3 (= 1)",
        "lines 2 and 4",
        "line 6 (eval: 1)",
        "line 5 (eval: 1)",
        "no training row gives: `never`",
    ):
        assert part in text
    assert found["written"] and json.loads(json.dumps(found))["task"] == "three"


def test_eval_rows_of_the_new_task_are_looked_for_in_the_training_rows_of_the_others(project):
    folder = project.parent
    train = rows_file(
        folder / "three.jsonl", [{"text": f"new {n}", "label": "yes no".split()[n % 2]} for n in range(10)]
    )
    held_out = rows_file(folder / "t.jsonl", [{"text": "World light 2", "label": "yes"}])  # line 3 of two.jsonl
    rows = [json.loads(line) for line in (folder / "two.jsonl").read_text().splitlines()]
    assert [n for n, row in enumerate(rows, 1) if row["text"] == "World light 2"] == [3]
    found = add_task(project, "three", train, evaluation=held_out)
    assert found["tasks"]["two"]["overlaps"] == {"three": {"rows": 1, "lines": [(3, 1)], "eval_rows": 1}}
    [warning] = found["warnings"]
    assert "1 training rows of two ask what 1 rows of the eval set of three ask" in warning


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A folder with a YAML of one task and the workspace that has learned it."""
    folder = tmp_path_factory.mktemp("learned")
    project = make_project(folder, tasks=[{"name": "one", "train": "one.jsonl", "eval": "one_eval.jsonl"}])
    run_sequence(load_config(project), project.with_suffix(""))
    return folder


@pytest.mark.parametrize("gone", ["train", "train and eval"])
def test_eval_rows_of_a_learned_task_whose_files_are_gone_are_still_compared(learned, tmp_path, gone):
    shutil.copytree(learned, tmp_path, dirs_exist_ok=True)
    project = tmp_path / "run.yaml"
    rows = (tmp_path / "one_eval.jsonl").read_text().splitlines()[:2]
    (tmp_path / "one.jsonl").unlink()
    if "eval" in gone:
        (tmp_path / "one_eval.jsonl").unlink()
    # Kept rows have only their rendered prompts, so the labels must be the same for a row to be found again.
    (tmp_path / "three.jsonl").write_text("\n".join([*rows, '{"text": "x", "label": "true"}']) + "\n")
    write_rows(tmp_path / "t.jsonl", 3, 6)
    found = add_task(project, "three", str(tmp_path / "three.jsonl"), evaluation=str(tmp_path / "t.jsonl"))
    assert found["tasks"]["three"]["overlaps"]["one"]["lines"] == [(1, 1), (2, 2)]
    assert any("not compared with the training rows of one" in line for line in found["warnings"])


LONG = "".join(json.dumps(pair(f"a {n}", "true " * 60)) + "\n" for n in range(6))
BAD = {
    "rows": ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n7\n', ["line 2: no column", "line 3: a number"]),
    "format": ('{"question": "a"}\n', ["line 1: the columns question fit no format"]),
    "long answer": (LONG, ["6 answers have more tokens", "(rows 1, 2, 3, 4, 5, 6)"]),
    "too few": ('{"prompt": "a", "completion": "b"}\n', ["no evaluation rows can be split off"]),
}


@pytest.mark.parametrize("case", BAD)
def test_problems_are_listed_with_lines_and_nothing_is_written(project, case):
    content, messages = BAD[case]
    (project.parent / "three.jsonl").write_text(content)
    before = tree_hash(project.parent)
    found = add_task(project, "three", str(project.parent / "three.jsonl"))
    for message in messages:
        assert any(message in problem for problem in found["problems"]), found["problems"]
    assert (found["written"], found["invalid"]) == (False, False) and tree_hash(project.parent) == before


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("one", "one.jsonl", "there is a task `one` already"),
        ("ONE", "one.jsonl", "two tasks are called"),
        ("a b", "one.jsonl", "only letters"),
        ("three", "", "empty"),
    ],
)
def test_a_task_that_no_configuration_can_have_is_refused(project, name, file, message, monkeypatch):
    monkeypatch.chdir(project.parent)
    before = tree_hash(project.parent)
    with pytest.raises(ConfigError, match=message):
        add_task(project, name, file)
    assert tree_hash(project.parent) == before


def test_a_missing_file_is_a_problem_that_names_it(project):
    found = add_task(project, "three", str(project.parent / "ones.jsonl"))
    [problem] = found["problems"]
    assert "ones.jsonl: no such file" in problem and "Did you mean `one.jsonl`?" in problem


def test_an_edit_made_during_the_checks_is_not_lost(project, monkeypatch):
    write_rows(project.parent / "three.jsonl", 3, 24)

    class Edits(Progress):
        def counting(self, what):
            project.write_text(project.read_text().replace("seed: 0", "seed: 7"))
            return super().counting(what)

    with pytest.raises(ConfigError, match="was changed while the rows were read"):
        add_task(project, "three", str(project.parent / "three.jsonl"), progress=Edits())
    assert "seed: 7" in read_text(project) and "three" not in read_text(project)


def test_the_yaml_keeps_its_permissions_and_what_a_killed_command_left_of_it_is_removed(project):
    write_rows(project.parent / "three.jsonl", 3, 24)
    before = sorted(os.listdir(project.parent))
    code = """import os, signal, sys, pathlib
from gorp.storage import write_atomic
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(pathlib.Path(sys.argv[1]), b"half")"""
    subprocess.run([sys.executable, "-c", code, str(project)], check=False)
    assert len(os.listdir(project.parent)) == len(before) + 1
    project.chmod(0o640)
    assert add_task(project, "three", str(project.parent / "three.jsonl"))["written"]
    assert stat.S_IMODE(project.stat().st_mode) == 0o640 and sorted(os.listdir(project.parent)) == before


def test_a_link_to_the_yaml_stays_a_link(project, tmp_path):
    write_rows(project.parent / "three.jsonl", 3, 24)
    link = tmp_path / "link.yaml"
    link.symlink_to(project.name)
    assert add_task(link, "three", str(project.parent / "three.jsonl"))["written"]
    assert link.is_symlink() and "three.jsonl" in project.read_text()


def test_a_change_that_training_would_refuse_is_a_problem(learned, tmp_path):
    shutil.copytree(learned, tmp_path, dirs_exist_ok=True)
    project = tmp_path / "run.yaml"
    project.write_text(project.read_text().replace("seed: 0", "seed: 5"))
    write_rows(tmp_path / "three.jsonl", 3, 24)
    found = add_task(project, "three", str(tmp_path / "three.jsonl"))
    assert found["invalid"] and "seed is 5" in found["problems"][0] and not found["written"]


def test_only_one_yaml_in_a_folder_need_not_be_named(tmp_path):
    with pytest.raises(ConfigError, match="no YAML in this folder"):
        find_config(tmp_path)
    (tmp_path / "bot.yaml").touch()
    assert find_config(tmp_path) == tmp_path / "bot.yaml"
    (tmp_path / "other.yml").touch()
    with pytest.raises(ConfigError, match=r"bot.yaml, other.yml"):
        find_config(tmp_path)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_file_too_large_to_keep_gives_the_same_findings(tmp_path, monkeypatch, ending):
    rows = [pair(f"question {n}", "yes" if n % 3 else "no") for n in range(300)] + [pair("question 7", "no")]
    if ending == "csv":
        text = "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in rows)
        (tmp_path / "three.csv").write_text(text)
    else:
        rows_file(tmp_path / "three.jsonl", rows)
    project = make_project(tmp_path, tasks=[{"name": "three", "train": f"three.{ending}"}])
    asked = (load_config(project), ["three"], Workspace(tmp_path / "bot"), Progress())
    whole = check_rows(*asked).tasks["three"]["train"]
    monkeypatch.setattr("gorp.data.sample.Sample.__init__.__kwdefaults__", {"most_rows": 40, "most_characters": 10**6})
    monkeypatch.setattr("gorp.data.row_index.PART", 50)
    monkeypatch.setattr("gorp.data.row_index.BLOCK", 16)
    monkeypatch.setattr("gorp.data.row_index.IN_MEMORY", 1000)
    parts = check_rows(*asked).tasks["three"]["train"]
    assert parts["tokens"]["random_rows"] == 40 and not parts["tokens"]["all_rows"]
    for part in (whole, parts):
        del part["tokens"], part["seconds"]
    assert parts == whole and len(whole["split_off"]) == 60
    assert whole["conflicts"]["lines"] == [(8, 301) if ending == "jsonl" else (9, 302)]


def test_learned_tasks_need_no_training_rows_to_be_validated(learned, tmp_path):
    shutil.copytree(learned, tmp_path, dirs_exist_ok=True)
    project = tmp_path / "run.yaml"
    (tmp_path / "one.jsonl").unlink()
    write_rows(tmp_path / "three.jsonl", 3, 24)
    assert add_task(project, "three", str(tmp_path / "three.jsonl"))["written"]
    found = validate(project)
    assert (found["problems"], found["pending"], list(found["tasks"])) == ([], ["three"], ["three"])


def test_a_path_is_relative_to_the_yaml(project, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_rows(tmp_path / "elsewhere" / "three.jsonl", 3, 24)
    assert add_task(project, "three", "three.jsonl")["entry"] == "{name: three, train: elsewhere/three.jsonl}"
    assert load_config(project).tasks[-1].train == os.path.abspath("three.jsonl")


def test_rows_of_tasks_that_are_both_split_are_compared_without_those_that_are_split_off(tmp_path):
    one = [pair(f"a {n}", f"{n}") for n in range(20)]
    project = make_project(tmp_path, tasks=[{"name": "one", "train": "one.jsonl"}])
    rows_file(tmp_path / "one.jsonl", one)
    cut = load_task(TaskSpec(name="one", train=str(tmp_path / "one.jsonl"))).eval["prompt"][:]
    train = rows_file(tmp_path / "three.jsonl", [pair(row["prompt"], f"{n} again") for n, row in enumerate(one)])
    own = load_task(TaskSpec(name="three", train=train)).eval["prompt"][:]
    lines = {row["prompt"]: line for line, row in enumerate(one, 1)}
    found = add_task(project, "three", train)["tasks"]
    leaks = {(lines[prompt], lines[prompt]) for prompt in cut if prompt not in own}
    assert leaks and set(found["three"]["overlaps"]["one"]["lines"]) == leaks
    others = {(lines[prompt], lines[prompt]) for prompt in own if prompt not in cut}
    assert others and set(found["one"]["overlaps"]["three"]["lines"]) == others
