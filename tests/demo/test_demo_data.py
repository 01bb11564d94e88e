"""The demo's data is balanced, free of duplicates, short, and equal to what scripts/make_demo_data.py writes."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
DATA = ROOT / "src/gorp/demo/data"
SPEC = importlib.util.spec_from_file_location("make_demo_data", ROOT / "scripts/make_demo_data.py")
make_demo_data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_demo_data)

TASKS = ("dbpedia", "snips", "clinc150", "banking77")


def rows(task: str, part: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / task / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


def about(task: str) -> dict:
    return json.loads((DATA / task / "task.json").read_text(encoding="utf-8"))


def test_the_folder_holds_exactly_the_four_tasks():
    assert {path.name for path in DATA.iterdir() if path.is_dir()} == set(TASKS)
    assert tuple(task.name for task in make_demo_data.TASKS) == TASKS


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("part", ["train", "eval"])
class TestRows:
    def test_every_label_has_the_same_number_of_rows(self, task, part):
        counts = Counter(row["label"] for row in rows(task, part))
        assert set(counts) == set(about(task)["labels"])
        assert len(set(counts.values())) == 1

    def test_the_number_of_rows_is_as_stated_in_task_json(self, task, part):
        assert len(rows(task, part)) == about(task)["rows"][part]

    def test_no_text_is_empty_or_longer_than_60_words(self, task, part):
        assert all(0 < len(row["text"].split()) <= 60 for row in rows(task, part))


@pytest.mark.parametrize("task", TASKS)
def test_no_text_occurs_twice_in_train_and_eval_together(task):
    keys = [make_demo_data.same_text_key(row["text"]) for part in ("train", "eval") for row in rows(task, part)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("task", TASKS)
def test_the_template_asks_shows_the_text_and_leaves_the_answer_open(task):
    prompt = about(task)["template"].format(text="TEXT")
    assert prompt.endswith("?\nTEXT\nAnswer: ")


@pytest.mark.parametrize("task", make_demo_data.TASKS, ids=lambda task: task.name)
def test_licence_and_attribution_are_in_licenses_md(task):
    text = (DATA / "LICENSES.md").read_text(encoding="utf-8")
    assert f"## {task.name}\n\n- Licence: [{task.licence}]" in text
    assert task.attribution in text


def test_the_whole_folder_is_small():
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 1_500_000


class TestSelect:
    task = make_demo_data.DemoTask(
        name="t", folder="", column="", instruction="", labels={"A": "a", "B": "b"}, train_rows=1, eval_rows=1,
        licence="", source="", attribution="",
    )  # fmt: skip

    def test_takes_the_lowest_digests_of_each_label(self):
        texts = [(f"text {index}", "A" if index % 2 else "B") for index in range(20)]
        chosen = make_demo_data.select(texts, 2, self.task, taken=set())
        for label, word in self.task.labels.items():
            lowest = sorted((text for text, own in texts if own == label), key=make_demo_data._digest)[:2]
            assert [row["text"] for row in chosen if row["label"] == word] == lowest

    def test_leaves_out_ambiguous_long_taken_foreign_and_repeated_texts(self):
        texts = [
            ("two labels", "A"), ("Two labels!", "B"), ("x " * 61, "A"), ("in train", "B"), ("other label", "C"),
            ("good", "A"), ("Good.", "A"), ("fine", "B"),
        ]  # fmt: skip
        chosen = make_demo_data.select(texts, 1, self.task, taken={"in train"})
        kept = sorted((row["text"].lower().strip("."), row["label"]) for row in chosen)
        assert kept == [("fine", "b"), ("good", "a")]

    def test_the_error_names_the_label_that_is_too_rare(self):
        with pytest.raises(SystemExit, match=r"2 rows of each label were wanted, .* \{'B': 1\}"):
            make_demo_data.select([("p", "A"), ("q", "A"), ("r", "B")], 2, self.task, taken=set())


def test_the_script_makes_the_same_bytes(data_root):
    for name, content in make_demo_data.make_all(data_root).items():
        assert (DATA / name).read_bytes() == content, name
