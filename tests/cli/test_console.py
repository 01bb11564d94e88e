"""What `gorp status` prints: short enough for a small terminal, and names are never read as markup."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from gorp.cli.console import fraction, short_date
from gorp.cli.status_tables import show_status
from gorp.printable import printable
from tests.report.matrices import matrix


MONTHS = ["october", "november", "december", "january", "february", "march"]


def earlier(names: list[str]) -> dict:
    """Coverage and output change of each task: the older the task, the less protected and the further moved."""
    return {name: {"coverage": 0.9875 - 0.01 * i, "output_change": 0.052 * i} for i, name in enumerate(reversed(names))}


def state(count: int, *, names=MONTHS) -> dict:
    """A workspace that has learned `count` tasks, each of which lost two points with every task after it."""
    names = names[:count]
    R = np.full((count + 1, count), 20.0)
    for i in range(1, count + 1):
        for j in range(i):
            R[i, j] = 90.0 - 2 * (i - 1 - j)
    leaks = {"leak": 1.04e-7, "leak_served": 0.21, "leak_earlier": {names[0]: {"worst": 0.34, "median": 1e-3}}}
    numbers = leaks | {"capacity_max": 0.131, "footprint_bytes": 2**23, "created": "2026-11-26T12:44:00+00:00"}
    numbers |= {"disk_bytes": 3 * 2**29}
    versions = [
        {"version": f"v{i}", "parent": f"v{i - 1}" if i else None, "task": names[i - 1] if i else None} | numbers
        for i in range(count + 1)
    ]
    return {
        "current": f"v{count}",
        "method": "gorp",
        "contains": names,
        "problem": None,
        "pending": ["may"],
        "held": {},
        "anyway": {},
        "begun": [],
        "matrix": matrix(R, names).to_dict(),
        "measures": {},
        "warnings": [],
        "remarks": [],
        "notes": {names[0]: ["the label set was taken from train"]},
        "versions": versions,
        "disk": {"bytes": 3 * 2**30, "gc_would_free": 2**20},
    }


def shown(state: dict, **options: bool) -> str:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    show_status(console, state, **options)
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_status_fits_a_terminal_of_80_columns_and_24_lines(count, recorded):
    full = state(count) | {"notes": {}}
    full["versions"][-1]["earlier"] = earlier(MONTHS[:count]) if recorded else None
    lines = shown(full).splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80


def test_the_task_that_lost_most_comes_first():
    lines = shown(state(3)).splitlines()
    assert lines[:5] == [
        "v3 (gorp): 88.0 % on average; earlier tasks lost 3.0 points on average",
        "  october: 86.0, lost 4.0 since it was learned",
        "  november: 88.0, lost 2.0 since it was learned",
        "  december: 90.0, just learned",
        "pending tasks: may",
    ]


def test_each_task_shows_how_much_of_it_is_protected_and_how_far_its_outputs_have_moved():
    full = state(3)
    full["versions"][2]["earlier"] = {"october": {"coverage": 0.5, "output_change": 0.5}}  # not the current version
    full["versions"][3]["earlier"] = earlier(MONTHS[:3]) | {"december": {"coverage": None, "output_change": None}}
    lines = [line.split("  ") for line in shown(full).splitlines()[1:5]]
    assert [[cell.strip() for cell in line if cell.strip()] for line in lines] == [
        ["protected", "outputs moved"],
        ["october: 86.0, lost 4.0 since it was learned", "96.8 %", "10.4 %"],
        ["november: 88.0, lost 2.0 since it was learned", "97.8 %", "5.2 %"],
        ["december: 90.0, just learned", "–", "–"],
    ]


def test_many_tasks_that_lost_nothing_share_a_line_unless_explain_is_set():
    full = state(6)
    full["matrix"]["R"] = [[90.0] * 6 for _ in full["matrix"]["R"]]
    full["versions"][-1]["earlier"] = earlier(MONTHS)
    assert "protected" not in shown(full) and "not lower than when learned: october" in shown(full)
    assert re.search(r"february: 90\.0, unchanged since it was learned +97\.8 % +5\.2 %", shown(full, explain=True))


def test_remarks_and_warnings_are_printed_once():
    lines = shown(state(3) | {"remarks": ["a copy lies there"], "warnings": ["S is nearly full"]}).splitlines()
    assert lines.count("a copy lies there") == lines.count("S is nearly full") == 1


def test_the_versions_table_has_the_newest_versions_and_the_current_one():
    old = state(6) | {"current": "v2"}
    assert re.findall(r"^ ([* ]) (v\d)", shown(old), re.M) == [("*", "v2"), (" ", "v5"), (" ", "v6")]
    assert len(re.findall(r"^ [* ] v\d", shown(old, explain=True), re.M)) == 7


def test_a_version_whose_parent_is_not_the_previous_one_names_its_parent():
    branched = state(3)
    branched["versions"][3]["parent"] = "v1"
    assert "* v3 after v1" in shown(branched)


def test_the_leak_is_shown_for_trained_weights_for_served_weights_and_on_earlier_tasks():
    warned = shown(state(2) | {"warnings": ["S may become the whole space"]}, explain=True)
    assert re.search(r"\* v2 +november .* 1e-7 +0\.21 +0\.34 +13 %", warned)
    assert re.search(r"\* v2 +november .* 1e-7 +0\.21 +13 %", shown(state(2)))
    assert "S may become the whole space\n" in warned


def test_the_size_of_each_version_is_shown_and_what_gc_would_free_if_anything():
    text = shown(state(2))
    assert len(re.findall(r" 1\.5 GiB +\n", text)) == 3 and "3.0 GiB on disk; `gorp gc` would free 1.0 MiB\n" in text
    assert "gorp gc" not in shown(state(2) | {"disk": {"bytes": 1, "gc_would_free": 0}})


def test_markup_and_control_characters_in_names_have_no_effect():
    text = shown(state(2, names=["[red]a[/red]", "b\x1b[2J"]), explain=True)
    assert "[red]a[/red]: 88.0" in text and "\x1b" not in text and "b�[2J" in text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (1.04e-7, "1e-7"), (0.0, "0"), (0.314, "0.31"), (2e-3, "2e-3")]
)
def test_a_leak_is_written_with_few_characters(value, text):
    assert fraction(value) == text


def test_a_date_is_written_with_few_characters():
    assert re.fullmatch(r"\d\d \w{3} (\d\d:\d\d|\d{4})", short_date("2025-11-26T12:44:00+00:00"))


def test_a_held_task_has_what_can_be_done_and_promotion_only_where_it_is_possible():
    tasks = ["october", "[red]november[/red]"]
    facts = {"version": "v4", "verdict": "hold", "against": "v3", "tasks": tasks, "guard": False}
    text = " ".join(shown(state(3) | {"held": {"january": facts}, "anyway": {"v2": "asked for"}}).split())
    assert "january: held, because v4 lost points on october, [red]november[/red]; the current version is v3" in text
    assert 'gorp promote --version v4 --anyway "REASON"' in text
    assert "v2 was promoted although the gate did not accept it: asked for" in text
    assert "gorp promote" not in shown(state(3) | {"held": {"january": facts | {"against": "v2"}}})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:hf_x@huggingface.co/a: gone", "https://…@huggingface.co/a: gone"),
        ("models/https:/hf_x@huggingface.co", "models/https:/…@huggingface.co"),
        ("https://huggingface.co/a@b, me@example.org", "https://huggingface.co/a@b, me@example.org"),
        ("no URL: a@b", "no URL: a@b"),
        ("C:/u@v/bot.yaml", "C:/u@v/bot.yaml"),
    ],
)
def test_a_token_in_a_url_is_not_printed(text, shown):
    assert printable(text) == shown
