"""Names and rows that a task accepts, and its notes."""

import pytest
from datasets import Dataset

from gorp.data.split import columns
from gorp.data.task import Task, build_task, check_names, rows_fingerprint
from gorp.errors import ConfigError, DataError


def table(*rows: tuple[str, str]) -> Dataset:
    return Dataset.from_dict({"prompt": [prompt for prompt, _ in rows], "completion": [answer for _, answer in rows]})


def numbered(rows: int, start: int = 0) -> Dataset:
    return table(*((f"input {i}", "ab"[i % 2]) for i in range(start, start + rows)))


def build(train: Dataset, evaluation: Dataset | None, **changes) -> Task:
    options = {"labels": ("a", "b"), "metric": "exact_match", "source": "here", "seed": 0, "dev_rows": 10}
    options |= {"limit_train": None, "limit_eval": None} | changes
    return build_task(name="t", train=train, evaluation=evaluation, **options)


@pytest.mark.parametrize("name", ["a", "SST-2", "tickets_2024.10", "-", "..."])
def test_names_that_can_be_file_names_are_accepted(name):
    check_names([name])


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", ".", "..", "é", "a\n", "a:b"])
def test_names_that_cannot_be_file_names_are_refused(name):
    with pytest.raises(ConfigError, match="becomes a file name"):
        check_names([name])


@pytest.mark.parametrize("names", [("a", "b", "a"), ("IMDB", "imdb")])
def test_two_tasks_with_one_file_name_are_refused(names):
    with pytest.raises(ConfigError, match="two tasks are called"):
        check_names(names)


def test_a_task_refuses_wrong_columns_no_rows_and_a_wrong_metric():
    good = {"name": "t", "train": numbered(3), "dev": None, "eval": numbered(3), "labels": None, "source": "here"}
    with pytest.raises(DataError, match="eval has the columns text"):
        Task(**(good | {"eval": Dataset.from_dict({"text": ["x"]})}), metric="exact_match")
    with pytest.raises(DataError, match="train has no rows"):
        Task(**(good | {"train": numbered(3).select([])}), metric="exact_match")
    with pytest.raises(ConfigError, match="metric `bleu` is unknown"):
        Task(**good, metric="bleu")
    with pytest.raises(ConfigError, match="closed label set"):
        Task(**good, metric="label_ranking")


def test_the_fingerprint_depends_only_on_the_rows():
    again = table(*zip(*columns(numbered(20)), strict=True))
    assert rows_fingerprint(numbered(20)) == rows_fingerprint(again)
    others = [numbered(21), numbered(20, 1), numbered(20).select(range(19, -1, -1))]
    assert len({rows_fingerprint(rows) for rows in (numbered(20), *others)}) == 4
    # The boundary between prompt and completion matters: "ab" + "c" is not "a" + "bc".
    assert rows_fingerprint(table(("ab", "c"))) != rows_fingerprint(table(("a", "bc")))


def test_notes_report_shared_and_conflicting_rows():
    train = numbered(100)
    assert build(train, numbered(20, 200)).notes == ()
    assert build(train, numbered(20, 97)).notes == ("3 of 20 eval prompts also occur in train",)
    assert build(train, train).notes == ("eval has the same rows as train: its score is a training score",)
    doubtful = table(("x", "a"), ("x", "b"), ("y", "a"))
    assert build(doubtful, numbered(3)).notes == ("prompts of train that occur with different completions: 1",)


def test_a_missing_eval_is_split_off_train_and_noted():
    task = build(numbered(100), None)
    assert (len(task.train), len(task.dev), len(task.eval)) == (70, 10, 20)
    assert task.notes == ("no eval given: 20 of 100 rows of train are used as eval",)
    assert len({*task.train["prompt"], *task.dev["prompt"], *task.eval["prompt"]}) == 100
    with pytest.raises(DataError, match="no evaluation rows can be split off the 4 training rows: there are too few"):
        build(numbered(4), None)


def test_eval_is_split_off_by_whole_prompts_if_every_prompt_occurs_several_times():
    copies = table(*((f"input {i % 20}", f"answer {i}") for i in range(100)))
    task = build(copies, None, labels=None, dev_rows=10)
    assert (len(task.train), len(task.dev), len(task.eval)) == (70, 10, 20)
    inputs = [set(part["prompt"]) for part in (task.train, task.dev, task.eval)]
    assert [len(names) for names in inputs] == [14, 2, 4] and len(set.union(*inputs)) == 20
    assert task.notes[0] == "no eval given: 20 of 100 rows of train are used as eval, all copies of a prompt together"
    with pytest.raises(DataError, match="every prompt has more than 2 copies, a fifth of the rows"):
        build(table(*((f"input {i % 2}", f"answer {i}") for i in range(10))), None, labels=None)


def test_limits_do_not_change_the_dev_and_eval_splits():
    whole, limited = build(numbered(100), None), build(numbered(100), None, limit_train=6, limit_eval=4)
    assert limited.dev["prompt"][:] == whole.dev["prompt"][:]
    assert sorted(limited.train["completion"]) == ["a"] * 3 + ["b"] * 3
    assert sorted(limited.eval["completion"]) == ["a"] * 2 + ["b"] * 2
    assert set(limited.train["prompt"]) < set(whole.train["prompt"])
    assert limited.notes[-2:] == (
        "train was limited to 6 of 70 rows, balanced over the labels",
        "eval was limited to 4 of 20 rows, balanced over the labels",
    )
