"""The trained tokens of a conversation are those that its chat template writes: prompt + lead + answer + end."""

import datetime

import pytest
import transformers.utils.chat_template_utils as clock

from gorp.data import Encoding, encode
from gorp.data.chat import render_chat
from gorp.data.form import with_forms
from gorp.data.rows import Row
from gorp.errors import ConfigError, DataError
from tests.tokenizers_small import llama_tokenizer


DAY = "2026-11-26"
TURNS = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello to you."},
    {"role": "user", "content": "Is the light red?"},
]

GEMMA = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}<|assistant|>{{ m.content }}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QWEN_3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_GENERATION_PROMPT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT_WITH_THINK = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
WITHOUT_TOKENS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y, %A %H:%M') }}\n" + DEEPSEEK


def chat_tokenizer(template):
    tokenizer = llama_tokenizer()
    names = ["<turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.chat_template = template
    return tokenizer


def rendered(tokenizer, answer, turns=TURNS, date=DAY):
    messages = [*turns, {"role": "assistant", "content": answer}]
    return messages, render_chat(Row("chat.jsonl, line 7", {"messages": messages}), tokenizer, date)


TEMPLATES = [
    (GEMMA, "", "<end_of_turn>"),
    (PHI, "", "<|end|>"),
    (LLAMA_2, " ", " </s>"),
    (DEEPSEEK, "", "</s>"),
    (QWEN_3, "<think>\n\n</think>\n\n", "<|im_end|>"),
    (NO_GENERATION_PROMPT, "<|im_start|>assistant\n", "<|im_end|>"),
]
NAMES = ["gemma", "phi", "llama 2", "deepseek", "qwen 3", "no generation prompt"]


@pytest.mark.parametrize("answer", ["True", "a", "is\nthe end"])
@pytest.mark.parametrize(("template", "lead", "end"), TEMPLATES, ids=NAMES)
def test_the_trained_tokens_are_those_of_the_whole_conversation(template, lead, end, answer):
    tokenizer = chat_tokenizer(template)
    messages, (prompt, completion, form) = rendered(tokenizer, answer)
    assert (form.chat, form.lead, completion, form.end) == (True, lead, answer, end)
    dataset = with_forms([prompt], [completion], [form])
    (row,) = encode(dataset, tokenizer, encoder_decoder=False, encoding=Encoding(max_completion_tokens=80))
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    assert (
        row["input_ids"] == whole[: len(row["input_ids"])]
    )  # the template may write more after the end, such as a line break
    assert tokenizer.convert_ids_to_tokens(row["input_ids"][-1]) == end.strip()
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert row["labels"] == [-100] * len(asked) + row["input_ids"][len(asked) :]


def test_an_answer_is_stripped_where_the_template_strips_it():
    tokenizer = chat_tokenizer(GEMMA)
    messages, (prompt, completion, form) = rendered(tokenizer, " True\n")
    assert completion == "True"
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.startswith(prompt + form.lead + completion + form.end)


def test_a_template_without_an_end_token_gets_eos():
    _, (prompt, completion, form) = rendered(chat_tokenizer(WITHOUT_TOKENS), "True")
    assert (prompt[-10:], form.lead, completion, form.end) == ("assistant:", " ", "True", "</s>")


def test_a_template_whose_prompt_changes_with_the_answer_is_refused():
    with pytest.raises(DataError, match=r"line 7: .* Without the answer it ends in .*<think>.*; with the answer"):
        rendered(chat_tokenizer(PROMPT_WITH_THINK), "True")


def test_an_answer_that_the_template_rewrites_is_refused():
    upper_case = chat_tokenizer(
        DEEPSEEK.replace("<|assistant|>{{ m.content }}", "<|assistant|>{{ m.content | upper }}")
    )
    with pytest.raises(DataError, match=r"line 7: the chat template changes the answer 'True'; it writes"):
        rendered(upper_case, "True")


@pytest.mark.parametrize("number", [1, 3, 4])
def test_a_special_token_in_a_turn_is_refused(number):
    turns = [dict(turn) for turn in TURNS]
    answer = "True"
    if number == 4:
        answer = "<|im_end|>"
    else:
        turns[number - 1]["content"] += " <|im_end|>"
    with pytest.raises(DataError, match=rf"line 7: turn {number} of `messages` contains '<\|im_end\|>'"):
        rendered(chat_tokenizer(QWEN_3), answer, turns)


REASONING = PHI.replace("{{ m.content }}", "{{ m.reasoning }}{{ m.calls | tojson if m.calls }}{{ m.content }}")


@pytest.mark.parametrize(
    ("number", "more"),
    [(4, {"reasoning": "Stop </s> here."}), (1, {"reasoning": "<|end|>"}), (3, {"calls": [{"<|end|>": {"n": 1}}]}),
     (2, {"calls": [{"name": "f", "arguments": ["<|end|>"]}]})],
)  # fmt: skip
def test_a_special_token_in_any_key_that_the_template_writes_is_refused(number, more):
    messages = [*TURNS, {"role": "assistant", "content": "True"}]
    messages[number - 1] = messages[number - 1] | more
    row = Row("chat.jsonl, line 7", {"messages": messages})
    key = next(iter(more))
    with pytest.raises(DataError, match=rf"line 7: turn {number} of `messages` contains '<.+>' in `{key}`"):
        render_chat(row, chat_tokenizer(REASONING), DAY)
    # A key that the template does not write may contain anything.
    prompt, completion, form = render_chat(row, chat_tokenizer(PHI), DAY)
    assert (prompt, completion, form) == rendered(chat_tokenizer(PHI), "True")[1]


def test_a_system_turn_may_be_empty():
    _, (prompt, *_) = rendered(chat_tokenizer(PHI), "True", [{"role": "system", "content": ""}, *TURNS])
    assert prompt.startswith("<|system|>\n<|end|>\n<|user|>")


def test_the_template_writes_the_given_date(monkeypatch):
    tokenizer = chat_tokenizer(DATED)
    _, (prompt, *_) = rendered(tokenizer, "True")
    assert prompt.startswith("26 Nov 2026, Thursday 00:00\n<|user|>Hello.")

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2031, 1, 2)

    monkeypatch.setattr(clock, "datetime", Tomorrow)
    assert tokenizer.apply_chat_template(TURNS, tokenize=False).startswith("02 Jan 2031")
    assert rendered(tokenizer, "True")[1][0] == prompt


def test_an_invalid_date_is_refused():
    with pytest.raises(ConfigError, match="date is 'today'; wanted a date in the form 2025-01-31"):
        Encoding(date="today")
