"""Conversations as the model's own chat template writes them, cut where the last answer begins and where it ends.

    template(all turns but the last, add_generation_prompt) = prompt
    template(all turns)                                     = prompt + lead + answer + end + …

Where the second does not begin with the first, what is trained could not be what the model is asked, and the row is
refused.
"""

from collections.abc import Mapping, Sequence
from datetime import date as Date
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from gorp.data.form import Form
from gorp.data.rows import Row, texts
from gorp.data.tokens import special_tokens
from gorp.errors import ConfigError, DataError, shown


CLOCK = "strftime_now"
"""The function through which a chat template asks for today's date."""

_MARK = "anotheranswer"
"""An answer that no template changes, to see what it writes before one."""

_DIRECTIVES = "a A w d b B m y Y H I p M S f j U W c x X z Z -d -m -H -I -M -S -j e".split()


def check_date(date: str) -> None:
    """Refuse what is no date.

    Raises:
        ConfigError: If `date` is not written as 2025-01-31.
    """
    try:
        Date.fromisoformat(date)
    except ValueError:
        raise ConfigError(f"date is {date!r}; wanted a day written as 2025-01-31.") from None


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template asks what day it is."""
    return CLOCK in str(tokenizer.chat_template or "")


def render_chat(row: Row, tokenizer: PreTrainedTokenizerBase | None, date: str) -> tuple[str, str, Form]:
    """Prompt, completion and form of a row with `messages`.

    Args:
        row: Its `messages` are turns as `read_turns` gives them, the last by `assistant`.
        tokenizer: With a chat template.
        date: What a template is told that asks for today's date.

    Raises:
        DataError: With the row's place: no template; turns that it refuses; a special token
            in a text of a turn; an answer that the template does not write behind the prompt, or changes.
    """
    if tokenizer is None or not tokenizer.chat_template:
        who = "no tokenizer was given" if tokenizer is None else "the model's tokenizer has no chat template"
        raise DataError(
            f"{row.place}: `messages` are written by a chat template, but {who}. "
            f"Use a chat model, or the format `prompt_completion`."
        )
    *turns, last = row.values["messages"]
    if last["role"] != "assistant":
        raise DataError(
            f"{row.place}: the last of `messages` is by `{last['role']}`; wanted the answer of `assistant`."
        )
    if not turns:
        raise DataError(f"{row.place}: `messages` holds only the answer; wanted at least one turn before it.")
    _check_text(row, [*turns, last], tokenizer, date)
    prompt = _rendered(row, turns, tokenizer, date, add_generation_prompt=True)
    whole = _rendered(row, [*turns, last], tokenizer, date)
    if not whole.startswith(prompt):
        raise DataError(
            f"{row.place}: the chat template writes the conversation another way when the answer is there, so what "
            f"would be trained is never asked: it asks for an answer with {_end(prompt)!r}, and with the answer it "
            f"writes {_end(whole)!r}. Use a chat template for which the second begins with the first, or the format "
            f"`prompt_completion`."
        )
    marked = _rendered(row, [*turns, last | {"content": _MARK}], tokenizer, date)
    lead = marked[len(prompt) : marked.find(_MARK)] if marked.startswith(prompt) and _MARK in marked else ""
    return prompt, *_answer(row, last["content"], lead, whole[len(prompt) :], tokenizer)


def _answer(row: Row, content: str, lead: str, rest: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, Form]:
    """The completion as the template writes it, and what stands around it; another answer has `lead` before it."""
    for completion in (content, content.strip()):
        at = len(lead) if rest.startswith(lead + completion) else rest.find(completion)
        if at >= 0:
            break
    else:
        raise DataError(
            f"{row.place}: the chat template does not write the answer as it stands: it makes {rest[:200]!r} of "
            f"{content[:200]!r}. Write the answer as the template does, or use the format `prompt_completion`."
        )
    tail = rest[at + len(completion) :]
    token = _first_special(tail, tokenizer)
    return completion, Form(
        chat=True, lead=rest[:at], end=str(tokenizer.eos_token or "") if token is None else tail[:token]
    )


def _first_special(text: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Where the first special token of `text` ends."""
    found = special_tokens(tokenizer)
    match = None if found is None else found.search(text)
    return None if match is None else match.end()


def _check_text(row: Row, turns: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, date: str) -> None:
    """Refuse names of special tokens in what the template writes of a turn; keys that it leaves out may hold any."""
    found = special_tokens(tokenizer)
    if found is None:
        return
    for index, turn in enumerate(turns):
        for key, value in turn.items():
            name = next((match[0] for text in texts(value) if (match := found.search(text))), None)
            if name is None:
                continue
            if key not in ("role", "content") and not _reads(row, turns, index, key, tokenizer, date):
                continue
            raise DataError(
                f"{row.place}: turn {index + 1} of `messages` holds {shown(name)!r} in `{shown(key)}`, which is a "
                f"special token of the tokenizer and would be read as one, not as text. Remove the row, or write it "
                f"otherwise."
            )


def _reads(
    row: Row, turns: Sequence[Mapping[str, Any]], index: int, key: str, tokenizer: PreTrainedTokenizerBase, date: str
) -> bool:
    """Whether the conversation is written otherwise, or refused, when a turn's `key` is null."""
    whole = _rendered(row, turns, tokenizer, date)
    try:
        without = [*turns[:index], {**turns[index], key: None}, *turns[index + 1 :]]
        return _rendered(row, without, tokenizer, date) != whole
    except DataError:
        return True


def _rendered(
    row: Row,
    turns: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    date: str,
    *,
    add_generation_prompt: bool = False,
) -> str:
    try:
        template = tokenizer.get_chat_template()
        if writes_date(tokenizer):
            template = _clock_at(date) + template
        text = tokenizer.apply_chat_template(
            list(turns),  # pyright: ignore[reportArgumentType]
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # a template is a program of its own and may raise anything
        raise DataError(f"{row.place}: the tokenizer's chat template refused `messages`: {error}") from error
    return cast(str, text)


def _clock_at(date: str) -> str:
    """A template's own `strftime_now` that always names one day, 0 o'clock, whatever parts of it are asked for."""
    day = Date.fromisoformat(date)
    steps = "".join(f"|replace('%{part}', {day.strftime(f'%{part}')!r})" for part in _DIRECTIVES)
    return "{%- macro " + CLOCK + "(format) -%}{{ format" + steps + " }}{%- endmacro -%}{{ '' }}"


def _end(text: str) -> str:
    return text if len(text) <= 120 else f"… {text[-120:]}"
