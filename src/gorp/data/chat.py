"""Render a conversation with the model's chat template, and split it into prompt, last answer and the text around it.

    template(all turns but the last, add_generation_prompt) = prompt
    template(all turns)                                     = prompt + lead + answer + end + …

If the second text does not begin with the first, the trained prompt would differ from the one at inference, and the
row is refused.
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
"""The function that a chat template calls to get today's date."""

_MARK = "anotheranswer"
"""An answer that no template changes. It shows what the template writes before any answer."""

_DIRECTIVES = "a A w d b B m y Y H I p M S f j U W c x X z Z -d -m -H -I -M -S -j e".split()


def check_date(date: str) -> None:
    """Check that `date` is a date in the form 2025-01-31.

    Raises:
        ConfigError: If it is not.
    """
    try:
        Date.fromisoformat(date)
    except ValueError:
        raise ConfigError(f"date is {date!r}; wanted a date in the form 2025-01-31.") from None


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes today's date."""
    return CLOCK in str(tokenizer.chat_template or "")


def render_chat(row: Row, tokenizer: PreTrainedTokenizerBase | None, date: str) -> tuple[str, str, Form]:
    """Return prompt, completion and form of a row with `messages`.

    Args:
        row: Its `messages` are turns as `read_turns` returns them, the last one by `assistant`.
        tokenizer: A tokenizer with a chat template.
        date: The date that the template gets as today's date.

    Raises:
        DataError: If there is no template, the template refuses the turns, a turn contains the name of a special
            token, or the template does not write the answer unchanged after the prompt. The message has file and line.
    """
    if tokenizer is None or not tokenizer.chat_template:
        none = "no tokenizer was given. Give the model's (`tokenizer=`)."
        without = "the model's tokenizer has no chat template. Use a chat model, or the format `prompt_completion`."
        raise DataError(f"{row.place}: `messages` need a chat template, but {without if tokenizer else none}")
    check_turns(row)
    *turns, last = row.values["messages"]
    _check_text(row, [*turns, last], tokenizer, date)
    prompt = _rendered(row, turns, tokenizer, date, add_generation_prompt=True)
    whole = _rendered(row, [*turns, last], tokenizer, date)
    if not whole.startswith(prompt):
        raise DataError(
            f"{row.place}: the prompt that the chat template writes with the answer differs from the one without it, "
            f"so training would use another prompt than inference. Without the answer it ends in {_tail(prompt)!r}; "
            f"with the answer the text ends in {_tail(whole)!r}. Use a chat template whose text with the answer begins "
            f"with the text without it, or the format `prompt_completion`."
        )
    marked = _rendered(row, [*turns, last | {"content": _MARK}], tokenizer, date)
    lead = marked[len(prompt) : marked.find(_MARK)] if marked.startswith(prompt) and _MARK in marked else ""
    return prompt, *_split_answer(row, last["content"], lead, whole[len(prompt) :], tokenizer)


def check_turns(row: Row) -> None:
    """Check that the last of `messages` is an answer, and not the only one.

    Raises:
        DataError: If it is not; the message has file and line.
    """
    *turns, last = row.values["messages"]
    if last["role"] != "assistant":
        raise DataError(f"{row.place}: the last of `messages` is by `{last['role']}`; wanted an answer by `assistant`.")
    if not turns:
        raise DataError(f"{row.place}: `messages` holds only the answer; wanted at least one turn before it.")


def _split_answer(row: Row, content: str, lead: str, rest: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, Form]:
    """Return the completion as the template writes it, and its form.

    Args:
        row: For messages.
        content: The answer in the row.
        lead: What the template writes between the prompt and an answer.
        rest: What the template writes after the prompt.
        tokenizer: The model's.
    """
    for completion in (content, content.strip()):
        at = len(lead) if rest.startswith(lead + completion) else rest.find(completion)
        if at >= 0:
            break
    else:
        raise DataError(
            f"{row.place}: the chat template changes the answer {content[:200]!r}; it writes {rest[:200]!r}. "
            f"Write the answer as the template does, or use the format `prompt_completion`."
        )
    tail = rest[at + len(completion) :]
    token_end = _end_of_first_special(tail, tokenizer)
    return completion, Form(
        chat=True, lead=rest[:at], end=str(tokenizer.eos_token or "") if token_end is None else tail[:token_end]
    )


def _end_of_first_special(text: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the index at which the first special token in `text` ends; None if there is none."""
    found = special_tokens(tokenizer)
    match = None if found is None else found.search(text)
    return None if match is None else match.end()


def _check_text(row: Row, turns: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, date: str) -> None:
    """Raise DataError if a part of a turn that the template writes contains the name of a special token."""
    found = special_tokens(tokenizer)
    if found is None:
        return
    for index, turn in enumerate(turns):
        for key, value in turn.items():
            name = next((match[0] for text in texts(value) if (match := found.search(text))), None)
            if name is None:
                continue
            if key not in ("role", "content") and not _template_uses(row, turns, index, key, tokenizer, date):
                continue
            raise DataError(
                f"{row.place}: turn {index + 1} of `messages` contains {shown(name)!r} in `{shown(key)}`. This is a "
                f"special token of the tokenizer and would not be read as text. Remove the row, or write it "
                f"differently."
            )


def _template_uses(
    row: Row, turns: Sequence[Mapping[str, Any]], index: int, key: str, tokenizer: PreTrainedTokenizerBase, date: str
) -> bool:
    """Whether the rendered text changes, or rendering fails, when `key` of turn `index` is null."""
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
            template = _fixed_clock(date) + template
        text = tokenizer.apply_chat_template(
            list(turns),  # pyright: ignore[reportArgumentType]
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # a template is a program and may raise anything
        raise DataError(f"{row.place}: the tokenizer's chat template refused `messages`: {error}") from error
    return cast(str, text)


def _fixed_clock(date: str) -> str:
    """Return a Jinja macro that replaces `strftime_now` and always gives midnight of `date`."""
    day = Date.fromisoformat(date)
    replacements = "".join(f"|replace('%{part}', {day.strftime(f'%{part}')!r})" for part in _DIRECTIVES)
    return "{%- macro " + CLOCK + "(format) -%}{{ format" + replacements + " }}{%- endmacro -%}{{ '' }}"


def _tail(text: str) -> str:
    return text if len(text) <= 120 else f"… {text[-120:]}"
