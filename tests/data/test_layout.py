"""The layout of a task, found from its rendered rows: templates of the benchmark, system texts, rows and texts."""

import pytest

from gorp.data import TaskSpec, load_cl_benchmark
from gorp.data.chat import render_chat
from gorp.data.form import PLAIN, with_forms
from gorp.data.layout import find_layout
from gorp.data.rows import Row
from tests.data.test_cl_benchmark import TEST, public
from tests.tokenizers_small import llama_tokenizer


DATE = "2025-01-01"


def chats(tokenizer, systems):
    """Rendered rows, one for each system text; None: none."""
    rendered = []
    for number, system in enumerate(systems):
        start = [] if system is None else [{"role": "system", "content": system}]
        turns = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": "good"}]
        rendered.append(render_chat(Row("row", {"messages": [*start, *turns]}), tokenizer, DATE))
    return with_forms(*zip(*rendered, strict=True))


def layout_of(tokenizer, systems):
    spec = TaskSpec(name="t", train="t.jsonl")
    rows = chats(tokenizer, systems)
    return find_layout(spec, rows, labels=None, source="t.jsonl", tokenizer=tokenizer, date=DATE)


OWN_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<|system|>\nYou are kind.\n{% endif %}"
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
JOINED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}A: {{ message['content'] }}\n"
    "{% else %}{{ message['content'] }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)


@pytest.mark.parametrize(
    ("systems", "system", "notes"),
    [
        ([None, None], None, 0),
        (["Be brief."] * 3, "Be brief.", 0),
        (["Two\nlines.", "Two\nlines."], "Two\nlines.", 0),
        (["Be brief.", "Be brief.", "Be kind."], "Be brief.", 1),
        ([None, None, "Be kind."], None, 1),
    ],
)
def test_the_system_text_is_the_one_that_the_rows_have(systems, system, notes):
    found = layout_of(llama_tokenizer(), systems)
    assert (found.chat, found.system, len(found.notes)) == (True, system, notes)


def test_a_system_text_that_the_template_adds_is_not_given_twice():
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = OWN_DEFAULT
    for systems, system in ([None, None], None), (["Be brief."] * 2, "Be brief."):
        found = layout_of(tokenizer, systems)
        assert found.system == system and not found.notes
        prompt, form = found.render("Question 0?", tokenizer=tokenizer, date=DATE)
        assert prompt == chats(tokenizer, systems[:1])["prompt"][0] and form.chat


def test_a_template_without_system_texts_has_none_and_one_that_hides_them_is_reported():
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    assert layout_of(tokenizer, [None]).notes == ()
    tokenizer.chat_template = JOINED
    assert "does not mark a system text" in layout_of(tokenizer, ["Be brief."]).notes[0]


@pytest.mark.parametrize("named", [False, True])
def test_the_published_prompt_of_a_benchmark_task(tmp_path, named):
    task = load_cl_benchmark(public(tmp_path), "MNLI", task_name_in_prompt=named)
    spec = TaskSpec(name="MNLI", train=str(tmp_path), task_name_in_prompt=named)
    asked = {"tokenizer": llama_tokenizer(), "date": DATE}
    found = find_layout(spec, task.eval, labels=task.labels, source=task.source, **asked)
    for row, prompt in zip(TEST, task.eval["prompt"], strict=True):
        for question in (row["sentence"], row):
            assert found.render(question, **asked)[0] == prompt
        assert found.render(question, **asked)[1].lead == " "


def test_an_object_is_a_row_only_if_it_has_the_columns():
    spec = TaskSpec(name="t", train="t.jsonl", columns={"question": "prompt"})
    rows = with_forms(["a"], ["b"], [PLAIN])
    found = find_layout(spec, rows, labels=None, source="t.jsonl", tokenizer=llama_tokenizer(), date=DATE)
    for text in ("{", '{"other": 1}', "[1]", "plain", '{"a": ' * 5000):
        assert found.read(text) == text
    for row in ({"question": "x"}, {"prompt": "x"}, {"question": "x", "prompt": "old"}):
        assert found.render(row, tokenizer=llama_tokenizer(), date=DATE)[0] == "x"
