"""The demo's results as a sentence, a page and a picture."""

import re

from gorp.demo import DemoResult, DemoSettings
from gorp.demo.page import demo_page, demo_picture, in_short
from gorp.report import Answer
from tests.report.matrices import FIRST, SECOND, matrix


PROMPT = "Which intent?\nBook a table.\nAnswer:"


def result(values, answer="a"):
    sample = {"index": 0, "prompt": PROMPT, "expected": "a", "answer": answer, "correct": answer == "a"}
    return DemoResult(matrix=matrix(values), seconds=1.0, samples=[sample])


def results(first=FIRST, second=SECOND):
    return {"sequential_lora": result(first, "b"), "gorp": result(second)}


def test_the_headline_has_both_numbers():
    assert in_short(results()) == (
        "After the last task, ordinary LoRA fine-tuning has lost 12.0 points on the earlier tasks; "
        "gorp has lost 5.0 points on the earlier tasks."
    )


def test_the_page_shows_both_answers_to_the_same_question_and_no_seconds():
    page = demo_page(DemoSettings(), results())
    [shown] = page.samples
    [sample] = shown.rows
    assert sample.question == "Book a table." and sample.prompt == PROMPT
    assert sample.answers == {"ordinary LoRA fine-tuning": Answer("b", False), "gorp": Answer("a", True)}
    assert not any("second" in name for name in page.facts)


def test_the_title_of_the_picture_says_that_gorp_keeps_only_if_bwt_shows_it():
    assert "Ordinary LoRA forgets; gorp keeps" in demo_picture(results())
    assert "forgets" not in demo_picture(results(SECOND, FIRST))


def test_the_picture_can_be_read_on_any_background():
    svg = demo_picture(results())
    assert "currentColor" not in svg and re.search(r'<rect width="100%" height="100%"[^>]*fill="#ffffff"', svg)


def test_the_command_on_the_page_gives_the_same_settings_again():
    def command(settings):
        return demo_page(settings, results()).commands["To compute these numbers again:"]

    assert command(DemoSettings()) == "gorp demo --seed 0"
    other = DemoSettings(model="my models/llama", seed=3, train_rows=8, epochs=1)
    assert command(other) == "gorp demo --seed 3 --model 'my models/llama' --train-rows 8 --epochs 1"
