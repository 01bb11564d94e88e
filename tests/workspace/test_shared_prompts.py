"""Prompts that the training rows of two tasks share are counted, and those with another answer."""

import json
import random
from types import SimpleNamespace

import pytest

from gorp.rows.shared_prompts import SharedPrompts
from gorp.workspace import add_task, validate
from tests.workspace.project import make_project


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def chat(prompt: str, completion: str) -> dict[str, list[dict[str, str]]]:
    turns = {"user": prompt, "assistant": completion}
    return {"messages": [{"role": role, "content": content} for role, content in turns.items()]}


BIKES = [pair(f"bike {n}", f"price {n}") for n in range(8)]


def project(folder, *, rows=BIKES, **options):
    """A YAML with the task `bikes`."""
    write(folder / "bikes.jsonl", rows)
    write(folder / "bikes_test.jsonl", [pair("a bike for the test", "price 0")])
    entry = {"name": "bikes", "train": "bikes.jsonl", "eval": "bikes_test.jsonl", **options}
    return make_project(folder, tasks=[entry])


FIX = [pair("new", "x"), pair("bike 3", "other"), pair("bike  4", "price 4 "), pair("bike 5", "other")]
FOUND = {"prompts": 3, "other_answers": 2, "lines": [(2, 4), (4, 6)]}
SAYS = (
    "3 prompts of fix are also in task bikes, 2 of them with another answer: line 2 (bikes: line 4), "
    "line 4 (bikes: line 6)"
)


def test_prompts_of_an_earlier_task_with_other_answers_are_a_warning_of_add_and_of_validate(tmp_path):
    path = project(tmp_path)
    held_out = write(tmp_path / "fix_test.jsonl", [pair("fix for the test", "x")])
    found = add_task(path, "fix", write(tmp_path / "fix.jsonl", FIX), evaluation=held_out)
    assert found["warnings"] == [SAYS] and found["written"]
    assert found["tasks"]["fix"]["shared_prompts"] == {"bikes": FOUND}
    found = validate(path)
    assert found["warnings"] == [SAYS] and found["tasks"]["bikes"]["shared_prompts"] == {}


def test_rows_that_are_split_off_as_eval_do_not_count(tmp_path):
    fix = [pair(f"bike {n}", f"price {n}") for n in range(5)]
    found = add_task(project(tmp_path), "fix", write(tmp_path / "fix.jsonl", fix))
    facts = found["tasks"]["fix"]
    [line] = facts["train"]["split_off"]
    rest = [(n, n) for n in range(1, 6) if n != line]
    assert facts["shared_prompts"]["bikes"] == {"prompts": 4, "other_answers": 0, "lines": rest}
    assert any("4 prompts of fix are also in task bikes, with the same answers: line" in x for x in found["warnings"])


def test_chats_are_compared_with_prompts(tmp_path):
    path = project(tmp_path, rows=[chat(**{"prompt": row["prompt"], "completion": row["completion"]}) for row in BIKES])
    held_out = write(tmp_path / "fix_test.jsonl", [pair("fix for the test", "x")])
    found = add_task(path, "fix", write(tmp_path / "fix.jsonl", FIX), evaluation=held_out)
    assert found["tasks"]["fix"]["shared_prompts"] == {"bikes": FOUND}


@pytest.mark.parametrize(
    ("options", "labels"),
    [({}, ("good", "bad")), ({"template": "Which topic? {text}"}, ("sports", "bad"))],
    ids=["no common label", "other template"],
)
def test_tasks_that_ask_something_else_of_the_same_text_are_not_compared(tmp_path, options, labels):
    texts = [f"a light {n}" for n in range(8)]
    topics = [{"text": text, "label": ("sports", "world")[n % 2]} for n, text in enumerate(texts)]
    path = project(tmp_path, rows=topics, **options, eval=write(tmp_path / "t.jsonl", [topics[0] | {"text": "new"}]))
    rows = [{"text": text, "label": labels[n % 2]} for n, text in enumerate(texts)]
    held_out = write(tmp_path / "fix_test.jsonl", [rows[0] | {"text": "other"}])
    found = add_task(path, "fix", write(tmp_path / "fix.jsonl", rows), evaluation=held_out)
    assert found["tasks"]["fix"]["shared_prompts"] == {} and not found["warnings"]


def task(name: str) -> SimpleNamespace:
    return SimpleNamespace(spec=SimpleNamespace(name=name, template=None), labels=None)


def test_parts_on_the_disk_give_what_a_comparison_of_all_rows_gives(monkeypatch):
    monkeypatch.setattr("gorp.data.row_index.PART", 50)
    monkeypatch.setattr("gorp.data.row_index.MOST_PARTS", 7)
    monkeypatch.setattr("gorp.data.row_index.BLOCK", 16)
    monkeypatch.setattr("gorp.data.row_index.IN_MEMORY", 1000)
    draw = random.Random(0)
    rows = {name: [(f"q {draw.randrange(300)}", f"a {draw.randrange(3)}") for _ in range(200)] for name in "abc"}
    without = {"a": {3, 5, 8}, "c": set(range(1, 100))}
    with SharedPrompts([task(name) for name in rows], ["b", "c"]) as shared:  # type: ignore[arg-type]
        assert shared.pairs == [("b", "a"), ("c", "a"), ("c", "b")]
        for name, each in rows.items():
            for line, (asked, answer) in enumerate(each, 1):
                shared.add(name, asked, answer, line)
        found = shared.found(without)
    for (mine, theirs), facts in found.items():
        left = {
            name: {n: row for n, row in enumerate(rows[name], 1) if n not in without.get(name, ())}
            for name in (mine, theirs)
        }
        both = {p for p, _ in left[mine].values()} & {p for p, _ in left[theirs].values()}
        other = {n: row for n, row in left[mine].items() if row[0] in both and row not in left[theirs].values()}
        first = {prompt: min(n for n, row in other.items() if row[0] == prompt) for prompt, _ in other.values()}
        lines = [(n, min(m for m, row in left[theirs].items() if row[0] == prompt)) for prompt, n in first.items()]
        assert facts == {"prompts": len(both), "other_answers": len(first), "lines": sorted(lines)[:10]}
    assert list(found) == shared.pairs
