"""The model card: front matter that the hub reads, the scores with their formulas, and no text that becomes markup."""

import re

import pytest
import yaml

from gorp.evaluation import FORMULAS, AccuracyMatrix
from gorp.export.card import card
from gorp.export.wording import sentences, size


CHECK = {"rows": 4, "prompts": True, "difference": 1e-7, "live": 2e-7}
LEAK = {"october": {"weights": 14, "worst": 2e-3, "median": 1e-3}}


def facts(**changes):
    return {
        "form": "merged",
        "version": "v2",
        "dtype": "bfloat16",
        "base": {"name": "owner/base", "revision": "main", "sha256": "ab" * 32},
        "encoder_decoder": False,
        "method": {"name": "gorp", "rank": 4},
        "tasks": {
            "october": {"train_rows": 24, "train_fingerprint": "cd" * 32, "eval_rows": 6, "metric": "exact_match"},
            "november": {},
        },
        "leak": 1e-7,
        "check": CHECK,
        "served_leak": LEAK,
    } | changes


def scores():
    matrix = AccuracyMatrix(["october", "november"])
    for row, task, score in [(0, "october", 10.0), (1, "october", 90.0), (2, "october", 87.0), (2, "november", 80.0)]:
        matrix.set(row, task, score, rows=50)
    return matrix


def front(text):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.S)[1])


def test_a_merged_card_has_what_the_hub_and_a_reader_need():
    text = card(facts(), scores())
    assert front(text) == {
        "base_model": "owner/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "tags": ["gorp", "continual-learning", "merged"],
    }
    assert "# license: fill in" in text
    assert "| november | 87.0 | 80.0 |" in text and "**83.5**" in text and f"`{FORMULAS['bwt']}`" in text
    assert "| october | 24 | cdcdcdcdcdcdcdcd | 6 | – | exact\\_match |" in text.replace("exact_match", "exact\\_match")
    assert '`{"name": "gorp", "rank": 4}`' in text and "1.0e-07 at worst" in text
    assert "AutoModelForCausalLM.from_pretrained" in text and "peft" not in text
    assert "rounding to bfloat16" in text


def test_an_adapter_card_names_rank_error_and_answers():
    measured = {
        "rank": 16,
        "why": None,
        "error": 0.02,
        "errors": {"model.a": 0.01, "model.b": 0.03},
        "check": CHECK,
        "answers": {"october": {"served": 90.0, "exported": 88.0, "rows": 50, "differ": 2}},
        "served_leak": {},
    }
    text = card(facts(form="lora", dtype="float32", **measured), None)
    assert front(text)["library_name"] == "peft" and front(text)["base_model_relation"] == "adapter"
    assert "2.0e-02 in total, 3.0e-02 at worst (model.b)" in text
    assert "90.0 as the version was served, 88.0 with base + adapter; 2 of 50 answers differ" in text
    assert 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), "FOLDER")' in text
    assert "## Scores" not in text
    each = card(facts(form="lora", versions={"v1": measured, "v2": measured}), None)
    assert '"FOLDER/v2"' in each and "v1:\n" in each and "v2:\n" in each


def test_without_tasks_and_scores_there_is_still_a_card():
    text = card(facts(tasks={}, leak=None, served_leak={}), None)
    assert "no task yet" in text and "## Scores" not in text and "## Tasks" not in text


@pytest.mark.parametrize("evil", ['"\nlicense: mit\nx: "', "a/b\n---\n# owned", "[x](javascript:1)|<script>", "`a`"])
def test_names_become_neither_yaml_nor_markup(evil):
    text = card(facts(base={"name": evil, "revision": evil, "sha256": "ab" * 32}, tasks={evil: {}}), None)
    assert "base_model" not in front(text) and "license" not in front(text)
    body = text.partition("\n---\n")[2]
    assert "<script>" not in body.replace("\\<", "") and "\n# owned" not in body
    assert not re.search(r"[^\\]\]\(javascript", body) and "| `a`" not in body


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "--dtype float32"),
        ({"dtype": "float32"}, "`released` and `leak`"),
        ({"form": "lora"}, "a larger --rank"),
        ({"served_leak": {"october": LEAK["october"] | {"worst": 1e-4}}}, None),
    ],
)
def test_a_large_leak_comes_with_the_way_out(changes, advice):
    lines = list(sentences(facts(**changes)))
    assert any("served leak on october" in line for line in lines)
    assert (advice in lines[-1]) if advice else "served leak" in lines[-1]


def test_sizes_have_a_unit():
    assert [size(n) for n in (7, 1500, 2_500_000, 3_000_000_000)] == ["7 bytes", "1.5 kB", "2.5 MB", "3,000.0 MB"]
