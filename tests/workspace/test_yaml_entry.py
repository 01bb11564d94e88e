"""A task is inserted at the end of `tasks:`, and every other character of the file stays."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gorp.errors import ConfigError
from gorp.workspace.yaml_entry import insert_task, quoted
from gorp.workspace.yaml_file import parse_yaml


ENTRY = {"name": "new", "train": "new.jsonl"}
TOP = "model: {path: m}  # a model\nmethod: {name: gorp}\n"
FLOW = "{name: new, train: new.jsonl}"

# What comes before the inserted text, the inserted text, and what comes after it.
CASES = {
    "flow entries": ("tasks:\n  - {name: a, train: a}\n", f"  - {FLOW}\n", ""),
    "a key after": ("tasks:\n  - {name: a, train: a}  # first\n", f"  - {FLOW}\n", "\n# the seed\nseed: 1\n"),
    "no indentation": ("tasks:\n- {name: a, train: a}\n", f"- {FLOW}\n", "seed: 1\n"),
    "block entries": (
        "tasks:\n    - name: a\n      train: a  # rows\n",
        "    - name: new\n      train: new.jsonl\n",
        "\n    # - name: later\nseed: 1\n",
    ),
    "a comment at the end": ("tasks:\n  - {name: a, train: a}\n", f"  - {FLOW}\n", "  # - {name: b, train: b}\n"),
    "no line end": ("tasks:\n  - {name: a, train: a}", f"\n  - {FLOW}\n", ""),
    "CRLF": ("tasks:\r\n  - {name: a, train: a}\r\n", f"  - {FLOW}\r\n", "seed: 1\r\n"),
    "flow list": ("tasks: [{name: a, train: a}", f", {FLOW}", "]  # all\nseed: 1\n"),
    "flow list over lines": ("tasks: [\n  {name: a, train: a}", f", {FLOW}", ",  # first\n]\n"),
    "empty flow list": ("tasks: [", FLOW, "]\nseed: 1\n"),
    "nothing": ("tasks:  # none yet\n", f"  - {FLOW}\n", "seed: 1\n"),
    "nothing, at the end": ("tasks:", f"\n  - {FLOW}\n", ""),
    "anchors": ("tasks:\n  - &a {name: a, train: a}\n  - {<<: *a, name: b}\n", f"  - {FLOW}\n", "seed: 1\n"),
    "an entry that is an alias": ("x: &x {name: a}\ntasks:\n  - *x\n", f"  - {FLOW}\n", "seed: 1\n"),
    "a list with an anchor": ("tasks: &t\n  - {name: a}\n", f"  - {FLOW}\n", "seed: 1\n"),
    "a block of text at the end": (
        "tasks:\n  - name: a\n    template: |\n      {text}\n      Answer:\n",
        "  - name: new\n    train: new.jsonl\n",
        "seed: 1\n",
    ),
    "an end of the document": ("tasks:\n  - {name: a, train: a}\n", f"  - {FLOW}\n", "...\n"),
}


@pytest.mark.parametrize("top", [TOP, "\ufeff" + TOP, "---\n" + TOP], ids=["plain", "byte order mark", "marker"])
@pytest.mark.parametrize("case", CASES)
def test_a_task_is_inserted_and_nothing_else_changes(case, top):
    before, new, after = CASES[case]
    if "CRLF" in case:
        top = top.replace("\n", "\r\n")
    written = insert_task(top + before + after, ENTRY, "bot.yaml")
    assert written == top + before + new + after
    old, now = (yaml.safe_load(text) for text in (top + before + after, written))
    assert now == old | {"tasks": [*(old["tasks"] or []), ENTRY]}


def test_a_whole_file_in_flow_style_is_kept_in_it():
    text = "{model: {path: m}, tasks: [{name: a, train: a}], seed: 1}"
    assert insert_task(text, ENTRY, "x") == text.replace("}]", "}, " + FLOW + "]")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tasks: {order: order1, data: x}\n", "is a published order"),
        ("tasks: one\n", "is not a list"),
        ("tasks: ~\n", "is `~`"),
        ("x: &x [{name: a}]\ntasks: *x\n", "is an alias of another list"),
        ("x: &x {tasks: [{name: a}]}\n<<: *x\n", "no key `tasks:` of its own"),
        ("seed: 1\n", "no key `tasks:` of its own"),
        ("tasks:\n\t- {name: a}\n", "not YAML"),
        ("tasks: &t\n  - {name: a}\nagain: *t\n", "without changing something else"),
        ("tasks:\n  - name: a\n    template: |+\n      x\n\n      # y\n", "without changing something else"),
    ],
)
def test_a_list_that_cannot_be_appended_to_is_refused_with_the_reason(text, reason):
    with pytest.raises(ConfigError, match=reason):
        insert_task(TOP + text, ENTRY, "bot.yaml")


@given(
    text=st.text(min_size=1).filter(str.isprintable)
    | st.sampled_from(["true", "2e-4", "12", "2024-01-31", "~", "a: b", "- x"])
)
def test_any_printable_text_is_the_same_text_after_it_is_read(text):
    assert parse_yaml(f"tasks: [{{name: {quoted(text)}}}]", "x") == {"tasks": [{"name": text}]}
    written = insert_task("tasks: []\n", {"name": text, "train": "x"}, "x")
    assert parse_yaml(written, "x")["tasks"] == [{"name": text, "train": "x"}]
