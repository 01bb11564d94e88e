"""Rows of each format become prompts and completions, and notes name columns that are not used."""

import json

import pytest

from gorp.data import TaskSpec, load_task
from gorp.data.form import forms_of
from gorp.data.rows import MAX_CHARACTERS, Row
from gorp.data.templates import Template
from gorp.data.turns import read_turns
from gorp.errors import ConfigError, DataError
from tests.tokenizers_small import llama_tokenizer


ALPACA = [{"instruction": f"Do {i}.", "input": f"with {i}" if i % 2 else " ", "output": f"done {i}"} for i in range(10)]
GREETING = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
SAME = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def read(tmp_path, rows: list[dict], **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = TaskSpec(**{"name": "t", "train": str(path), "eval": str(path)} | options)
    return load_task(spec, tokenizer=llama_tokenizer())


def test_an_alpaca_prompt_is_the_instruction_and_the_input_if_there_is_one(tmp_path):
    task = read(tmp_path, ALPACA)
    assert task.train["prompt"][:2] == ["Do 0.\nAnswer:", "Do 1.\nwith 1\nAnswer:"]
    assert (task.train["completion"][:2], forms_of(task.train)[0].lead) == (["done 0", "done 1"], " ")
    assert not [note for note in task.notes if "not used" in note]
    without = [{key: row[key] for key in ("instruction", "output")} for row in ALPACA]
    assert read(tmp_path, without).train["prompt"][1] == "Do 1.\nAnswer:"
    framed = read(tmp_path, ALPACA, template="### {instruction}\n\n### Input: {input?}\n### Answer:")
    assert framed.train["prompt"][:2] == ["### Do 0.\n\n### Answer:", "### Do 1.\n\n### Input: with 1\n### Answer:"]
    with pytest.raises(DataError, match=r"line 1: `input` is blank.* write `\{input\?\}` in the template if it may be"):
        read(tmp_path, ALPACA, template="{instruction} {input}")
    with pytest.raises(DataError, match=r"line 1: `output` is blank"):
        read(tmp_path, [ALPACA[0] | {"output": ""}])
    with pytest.raises(DataError, match=r"line 1: `input` is a number; wanted text"):
        read(tmp_path, [ALPACA[0] | {"input": 3}])


def test_a_note_names_unused_columns_with_text(tmp_path):
    rows = [row | {"id": number, "source": "web", "tags": []} for number, row in enumerate(ALPACA)]
    renamed = read(tmp_path, rows, columns={"instruction": "prompt", "output": "completion"})
    assert "columns that are not used: `input`, `source`" in renamed.notes
    assert "columns that are not used: `source`" in read(tmp_path, rows).notes
    labelled = [{"text": f"x{i}", "label": "ab"[i % 2], "title": "T"} for i in range(6)]
    assert "columns that are not used: `title`" in read(tmp_path, labelled).notes
    assert not any("not used" in note for note in read(tmp_path, labelled, template="{title}: {text}").notes)
    chat = [{"messages": SAME, "tags": ["a"], "system": ""}]
    assert "columns that are not used: `tags`" in read(tmp_path, chat).notes
    swapped = read(tmp_path, [{"text": "x", "label": "0", "verdict": "a"}], columns={"verdict": "label"})
    assert "`columns` replaces existing columns: `label`" in swapped.notes


@pytest.mark.parametrize("turns", [GREETING, SAME, [turn | {"role": None, "content": None} for turn in GREETING]])
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_both_turn_formats_give_the_same_chat_in_both_columns(tmp_path, column, turns):
    task = read(tmp_path, [{column: turns, "system": "Be brief."}])
    prompt = "<|system|>\nBe brief.\n<|user|>\nhi\n<|assistant|>\n"
    assert (task.train["prompt"][:], task.train["completion"][:]) == ([prompt], ["ho"])
    assert not any("not used" in note for note in task.notes)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": []}, "non-empty list in the column `conversations`"),
        ({"conversations": ["hi"]}, "turn 1 of `conversations` is text; wanted an object with"),
        ({"conversations": [{"from": "human"}]}, "turn 1 of `conversations`: no column `value`; found: from. Add it."),
        ({"conversations": [{"from": "him", "value": "x"}]}, "is by `him`; wanted one of human"),
        ({"conversations": [GREETING[0], {"from": "function_call", "value": "f"}]}, "function calls are not"),
        ({"conversations": GREETING[:1]}, "is by `user`"),
        ({"conversations": GREETING, "tools": "[{}]"}, "has `tools` and `conversations`"),
        ({"messages": SAME, "images": ["a.png"]}, "has `images` and `messages`"),
        ({"messages": SAME, "system": 3}, "`system` is a number"),
        ({"messages": [{"role": "system", "content": "a"}, *SAME], "system": "b"}, "system` and in `messages` differ"),
        ({"messages": [SAME[0], SAME[1] | {"weight": 0}]}, r"excluded from the loss \(`weight`: 0\)"),
        ({"messages": [SAME[0], SAME[1] | {"train": False}]}, "excluded from the loss"),
        ({"messages": [SAME[0], SAME[1] | {"tool_calls": [{}]}]}, "the last turn of `messages` has `tool_calls`"),
    ],
)
def test_a_chat_that_cannot_be_trained_is_refused_with_its_line(tmp_path, row, message):
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2.*" + message):
        read(tmp_path, [{key: SAME for key in row if key in ("messages", "conversations")}, row])


def test_other_keys_of_turns_are_kept_for_the_chat_template():
    turns = [SAME[0] | {"name": "Ann"}, SAME[1] | {"thinking": "hm", "weight": 1, "name": None}]
    assert read_turns(Row("x", {"messages": turns}), "messages")[0] == SAME[0] | {"name": "Ann"}


def test_a_note_names_unused_keys_of_the_answer(tmp_path):
    task = read(tmp_path, [{"messages": [SAME[0], SAME[1] | {"thinking": "hm", "weight": 1}]}])
    assert "keys of the last turn that are not used: `thinking`" in task.notes


def test_templates_render_the_hand_written_prompts():
    row = Row("x", {"a": "A", "b": "", "c": None, "d": "{D}"})
    for text, prompt in {
        "{a}": "A",
        "{{{a}}} {d}": "{A} {D}",
        "{a}\n{b?}\n": "A\n",
        "b: {b?}\n{a}": "A",
        "{a}{b?}!\n\n{c?} {nothing?}": "A!\n",
        "{a?}\n{b?}{a?}": "A\nA",
    }.items():
        assert Template(text).render(row, None) == prompt, text
    assert Template("{labels}: {a}").render(row, ("x", "y")) == "x, y: A"


@pytest.mark.parametrize("text", ["{labels?} {a}", "{a??}", "{?}", "{a.b?}", "{labels}"])
def test_invalid_templates_are_refused(text):
    with pytest.raises(ConfigError, match="template '"):
        Template(text)


def test_an_optional_column_that_no_row_has_is_refused(tmp_path):
    rows = [{"text": "x", "label": "y", "context": ""}]
    with pytest.raises(DataError, match=r"`\{contxt\?\}`, but no row has this column; .* Did you mean `context`\?"):
        read(tmp_path, rows, template="{text} {contxt?}")
    assert read(tmp_path, rows, template="{text} {context?}").train["prompt"][:] == ["x "]


def test_a_text_over_the_character_limit_is_refused(tmp_path):
    rows = [{"prompt": "p", "completion": "c"}]
    assert len(read(tmp_path, [*rows, {"prompt": "x" * MAX_CHARACTERS, "completion": "c"}]).train) == 2
    for change in ({"prompt": "x" * (MAX_CHARACTERS + 1)}, {"completion": "ab " * 400_000}):
        with pytest.raises(DataError, match=r"line 2: its (prompt|completion) has 1,\d{3},\d{3} characters; at most"):
            read(tmp_path, [*rows, rows[0] | change])


def test_error_messages_stay_short_for_huge_rows(tmp_path):
    wide = {f"column {i}": "x" * 99 for i in range(5000)}
    with pytest.raises(DataError) as unknown:
        read(tmp_path, [wide])
    labelled = [{"text": "x", "label": "y"}, {"text": "x", "label": "z" * 900_000}]
    with pytest.raises(DataError) as label:
        read(tmp_path, labelled, labels=["y", "q" * 5000])
    assert "(5000 in total)" in str(unknown.value) and "(900,000 characters)" in str(label.value)
    assert max(len(str(caught.value)) for caught in (unknown, label)) < 2000
