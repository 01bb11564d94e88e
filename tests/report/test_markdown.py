"""A page as Markdown: the same numbers, and no text that is read as markup."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gorp.report import page_markdown
from gorp.report.page import MAX_SAMPLES
from tests.report.test_page import HOSTILE, SAMPLE, everywhere, example, samples, whole


def test_it_has_the_sections_and_the_numbers_of_the_page():
    text = page_markdown(whole())
    for wanted in ("# Order 1", "**gorp lost less.**", "| news | ✗ hold | 90.0 | 80.0 |", "- news: lost 10.0 points"):
        assert wanted in text
    headings = re.findall(r"^## (.*)$", text, flags=re.M)
    assert headings == [
        "Verdict on each task",
        "Guard text",
        "Score on every task, after every task",
        "Forgetting",
        "Sample answers",
        "Summary",
        "Capacity",
        "Cost of each version",
        "Evidence",
    ]
    assert "| v1 | 2026-11-01 | 1.0 MiB |" in text and f"\n    gorp doctor {'x' * 200}\n" in text


def test_what_is_empty_is_left_out():
    text = page_markdown(example(facts={}, notes=[], samples=[]))
    assert not re.search(r"## (Evidence|Sample answers|Capacity|Verdict|Cost)", text)


def test_of_many_answers_a_part_is_shown_and_it_says_so():
    text = page_markdown(example(samples=samples(*[SAMPLE] * 100)))
    assert f"{MAX_SAMPLES} of 100 rows, at even distances." in text and text.count("| ✗ False |") == MAX_SAMPLES


def lines(text):
    """Return the kind of each line: its first character, and the number of cells if it is a row of a table."""
    rows = (re.sub(r"\\.", "x", line) for line in text.split("\n"))
    return [(row[:1], row.count("|")) if row[:1] in "|#-" else (row[:4] == "    ", bool(row)) for row in rows]


@pytest.mark.parametrize(
    "text", [*HOSTILE, "a | b", "# x\n- y\n\n| z |", "[a](https://b)", "`c`", "\x1b[31m", "\u202eabc"]
)
def test_text_from_data_does_not_change_the_structure(text):
    hostile, harmless = page_markdown(everywhere(text)), page_markdown(everywhere("qqq"))
    assert lines(hostile) == lines(harmless)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e]", hostile)
    # A command is in a block of code; elsewhere only our own formulas have such characters.
    read = r"(?<!\\)<|(?<!\\)://|(?<!\\)\]\("
    found = [re.findall(read, page[: page.rindex("\n    ")]) for page in (hostile, harmless)]
    assert found[0] == found[1]


@settings(max_examples=20, deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_any_text_can_be_written(text):
    assert page_markdown(everywhere(text)).encode()
