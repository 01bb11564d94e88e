"""Both folder layouts give the same task, with exactly the published prompt."""

import json
from pathlib import Path

import pytest

from gorp.data import TaskSpec, load_task
from gorp.data.cl_benchmark import INSTRUCTIONS, load_cl_benchmark, official_prompt
from gorp.data.orders import ORDERS
from gorp.data.task import Task, rows_fingerprint
from gorp.errors import ConfigError, DataError


LABELS = ["neutral", "entailment"]
TRAIN = [{"sentence": f"sentence 1: a\nsentence 2: {i}", "label": LABELS[i % 2]} for i in range(20)]
TEST = [{"sentence": f"sentence 1: b\nsentence 2: {i}", "label": (*LABELS, "-")[i % 3]} for i in range(6)]


def public(root: Path, *, train=TRAIN, test=TEST, dev=TEST, category="NLI") -> Path:
    folder = root / category / "MNLI"
    folder.mkdir(parents=True)
    for part, rows in (("train", train), ("test", test), ("dev", dev)):
        (folder / f"{part}.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "labels.json").write_text(json.dumps(LABELS), encoding="utf-8")
    return root


def flat(root: Path) -> Path:
    folder = root / "MNLI"
    folder.mkdir(parents=True)
    for part, rows in (("train", TRAIN), ("test", TEST)):
        lines = "".join(json.dumps(row | {"src": "x"}) + "\n" for row in rows)
        (folder / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "labels.json").write_text(json.dumps(LABELS), encoding="utf-8")
    card = {"category": "NLI", "dataset": "MNLI", "status": "made up"}
    (folder / "task.json").write_text(json.dumps(card), encoding="utf-8")
    return root


def fingerprints(task: Task) -> list[str]:
    return [rows_fingerprint(rows) for rows in (task.train, task.eval)]


def test_the_prompt_is_the_hand_written_one():
    prompt = official_prompt("S", category="TC", dataset="agnews", labels=("World", "Sports"), task_name_in_prompt=True)
    assert prompt == (
        "Task:TC\nDataset:agnews\nWhat is the topic of the following paragraph? Choose one from the option.\n"
        "Option: World, Sports \nS\nAnswer:"
    )
    assert official_prompt("S", category="COPA", dataset="COPA", labels=("A", "B")) == "S\nAnswer:"


def test_both_layouts_give_the_same_task(tmp_path):
    first = load_cl_benchmark(public(tmp_path / "public"), "MNLI", dev_rows=4)
    second = load_cl_benchmark(flat(tmp_path / "flat"), "MNLI", dev_rows=4)
    assert fingerprints(first) == fingerprints(second)
    assert (first.name, first.labels, len(first.train), len(first.dev), len(first.eval)) == (
        *("MNLI", tuple(LABELS)),
        *(16, 4, 6),
    )
    assert second.eval[0]["prompt"].endswith("Option: neutral, entailment \nsentence 1: b\nsentence 2: 0\nAnswer:")
    assert first.notes == (
        "2 of 6 eval rows have no agreed label (`-`) and always count as wrong",
        "the dev file repeats the test rows and is not used; dev is cut from train",
    )
    assert second.notes[0] == "status of the rows: made up"


def test_rows_may_be_under_the_key_instances(tmp_path):
    plain = load_cl_benchmark(public(tmp_path / "a"), "MNLI")
    wrapped = load_cl_benchmark(public(tmp_path / "b", train={"Instances": TRAIN}), "MNLI")
    assert fingerprints(wrapped) == fingerprints(plain)


def test_a_limited_eval_has_no_rows_without_label(tmp_path):
    task = load_cl_benchmark(flat(tmp_path), "MNLI", limit_eval=4)
    assert sorted(task.eval["completion"]) == ["entailment"] * 2 + ["neutral"] * 2


def test_a_spec_may_name_the_data_set_or_the_root(tmp_path):
    root = flat(tmp_path)
    by_folder = load_task(TaskSpec(name="october", train=str(root / "MNLI"), task_name_in_prompt=True))
    by_root = load_task(TaskSpec(name="MNLI", train=str(root), format="cl_benchmark", task_name_in_prompt=True))
    assert fingerprints(by_folder) == fingerprints(by_root)
    assert (by_folder.name, by_root.name) == ("october", "MNLI")
    assert by_folder.train[0]["prompt"].startswith("Task:NLI\nDataset:MNLI\nWhat is the logical")
    with pytest.raises(ConfigError, match="`template` is not used"):
        load_task(TaskSpec(name="t", train=str(root / "MNLI"), template="{text}"))


def test_errors_name_what_is_missing_or_invalid(tmp_path):
    root = public(tmp_path / "good")
    with pytest.raises(DataError, match=r"no data set `MNIL` .*found: MNLI\. Did you mean `MNLI`\?"):
        load_cl_benchmark(root, "MNIL")
    with pytest.raises(DataError, match="no such folder"):
        load_cl_benchmark(tmp_path / "none", "MNLI")
    with pytest.raises(DataError, match=r"no official prompt for the category `NIL`.*Did you mean `NLI`"):
        load_cl_benchmark(public(tmp_path / "category", category="NIL"), "MNLI")
    stray = [*TRAIN, {"sentence": "x", "label": "-"}]
    with pytest.raises(DataError, match=r"train\.json, item 21: label `-` is not one of the task's labels: neutral, "):
        load_cl_benchmark(public(tmp_path / "stray", train=stray), "MNLI")
    (root / "NLI" / "MNLI" / "test.json").unlink()
    with pytest.raises(DataError, match=r"neither test\.jsonl nor test\.json"):
        load_cl_benchmark(root, "MNLI")
    (root / "NLI" / "MNLI" / "labels.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(DataError, match=r"labels\.json: contains a dict; wanted a list"):
        load_cl_benchmark(root, "MNLI")


def test_the_orders_are_permutations_of_the_same_tasks():
    assert list(ORDERS) == [f"order{i}" for i in range(1, 7)]
    for name, tasks in ORDERS.items():
        group = ORDERS["order1"] if name <= "order3" else ORDERS["order4"]
        assert sorted(tasks) == sorted(group)
        assert len(set(tasks)) == (4 if name <= "order3" else 15)
    assert len(set(ORDERS.values())) == 6


def test_the_orders_are_the_published_ones(data_root):
    published = json.loads((data_root / "cl15" / "orders.json").read_text(encoding="utf-8"))
    assert {name: list(tasks) for name, tasks in ORDERS.items()} == published


def test_the_instructions_are_the_published_ones(data_root):
    published = json.loads((data_root / "cl15" / "instruction_config.json").read_text(encoding="utf-8"))
    assert {name: [entry["instruction"] for entry in entries] for name, entries in published.items()} == {
        name: [instruction] for name, instruction in INSTRUCTIONS.items() if name != "COPA"
    }


@pytest.mark.parametrize("dataset", ORDERS["order4"])
def test_real_tasks_have_the_published_prompt_and_size(data_root, dataset):
    root = data_root / "cl15"
    card = json.loads((root / dataset / "task.json").read_text(encoding="utf-8"))
    with open(root / dataset / "test.jsonl", encoding="utf-8") as file:
        first = json.loads(file.readline())
    for named, key in ((False, "prompt_template"), (True, "prompt_template_with_prefix")):
        task = load_cl_benchmark(root, dataset, task_name_in_prompt=named)
        assert task.eval[0] == {
            "prompt": card[key].replace("{sentence}", first["sentence"]),
            "completion": first["label"],
        }
        assert list(task.labels) == card["labels"]
        assert (len(task.train) + len(task.dev), len(task.eval)) == (card["rows"]["train"], card["rows"]["test"])
