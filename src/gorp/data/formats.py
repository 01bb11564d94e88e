"""Render the columns of a row into prompt and completion, for each row format."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from gorp.data.chat import render_chat
from gorp.data.form import PLAIN as PLAIN_FORM
from gorp.data.form import Form, with_forms
from gorp.data.rows import Row, check_length, names, text_column
from gorp.data.templates import ALPACA, LABELLED, PLAIN, Template
from gorp.data.turns import read_turns, unread_keys
from gorp.errors import DataError, nearest, shown


ANSWERS = {"prompt_completion": "completion", "text_label": "label", "alpaca": "output"}
"""Format -> the column with the answer."""

TURNS = {"messages": "messages", "sharegpt": "conversations"}
"""Format -> the column with the turns."""


def detect_format(row: Row, *, template: str | None = None) -> str:
    """Return the format of a file, judged by its first row: a key of `TURNS` or `ANSWERS`.

    Raises:
        DataError: If the columns fit no format; the message names those found.
    """
    columns = row.values.keys()
    if "messages" in columns:
        return "messages"
    if "conversations" in columns:
        return "sharegpt"
    if {"prompt", "completion"} <= columns:
        return "prompt_completion"
    if {"text", "label"} <= columns or (template is not None and "label" in columns):
        return "text_label"
    if {"instruction", "output"} <= columns:
        return "alpaca"
    raise DataError(
        f"{row.place}: the columns {names(columns)} fit no format; wanted `prompt` and `completion`, or "
        f"`messages`, or `conversations`, or `instruction` and `output`, or `text` and `label`. Rename columns with "
        f"`columns`."
    )


def render_rows(
    rows: Sequence[Row],
    *,
    format: str,
    template: str | None,
    labels: tuple[str, ...] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    date: str,
) -> Dataset:
    """Render rows into a data set with the columns `prompt` and `completion`, and `form` if rows have one.

    Args:
        rows: The rows as read.
        format: A key of `TURNS` or `ANSWERS`.
        template: For `text_label` and `alpaca`: the prompt, see `Template`.
        labels: The closed label set; a completion outside it is an error.
        tokenizer: For chats: its chat template renders the conversation.
        date: For chats: the date that the chat template writes as today's.

    Raises:
        DataError: For the first invalid row, with its file and line.
        ConfigError: If the template names no column, or names `{labels}` and there are none.
    """
    if format in TURNS:
        chats = [Row(row.place, {"messages": read_turns(row, TURNS[format])}) for row in rows]
        rendered = [render_chat(row, tokenizer, date) for row in chats]
    elif (parsed := template_of(format, template, labels)) is not None:
        parsed.check(rows, labels)
        form = Form(lead=parsed.lead)
        rendered = [(parsed.render(row, labels), text_column(row, ANSWERS[format]), form) for row in rows]
    else:
        rendered = [(text_column(row, "prompt"), text_column(row, "completion"), PLAIN_FORM) for row in rows]
    for row, (prompt, completion, _) in zip(rows, rendered, strict=True):
        check_length(row, "prompt", prompt)
        check_length(row, "completion", completion)
        check_label(row, completion, labels)
    return with_forms(*zip(*rendered, strict=True))


def template_of(format: str, template: str | None, labels: tuple[str, ...] | None) -> Template | None:
    """Return the template of a format's prompts, `template` or the format's default; None if the format has none.

    Raises:
        ConfigError: If `Template` refuses the text.
    """
    if format == "alpaca":
        return Template(ALPACA if template is None else template)
    if format == "text_label":
        return Template((PLAIN if labels is None else LABELLED) if template is None else template)
    return None


def unused(rows: Sequence[Row], *, format: str, template: str | None, labels: tuple[str, ...] | None) -> list[str]:
    """Return notes on content that is not used: columns with text or a list, and keys of the turns with the answers.

    Args:
        rows: The rows as read.
        format: As in `render_rows`.
        template: As in `render_rows`.
        labels: As in `render_rows`.
    """
    if format in TURNS:
        used = {TURNS[format], "system"}
    else:
        parsed = template_of(format, template, labels)
        used = {ANSWERS[format], *(["prompt"] if parsed is None else [*parsed.required, *parsed.optional])}
    columns = dict.fromkeys(name for row in rows for name in row.values if name not in used)
    columns = [name for name in columns if any(_has_content(row.values.get(name)) for row in rows)]
    keys = {key for row in rows for key in unread_keys(row, TURNS[format])} if format in TURNS else set()
    found = {"columns": columns, "keys of the last turn": sorted(keys)}
    return [f"{what} that are not used: {names(f'`{x}`' for x in unused)}" for what, unused in found.items() if unused]


def _has_content(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value) and isinstance(value, list | dict)


def check_label(row: Row, label: str, labels: tuple[str, ...] | None) -> None:
    """Check that a label is in the closed set; None allows every label.

    Raises:
        DataError: If it is not; the message has file and line, the label and the set.
    """
    if labels is not None and label not in labels:
        raise DataError(
            f"{row.place}: label `{shown(label)}` is not one of the task's labels: {names(labels)}."
            f"{nearest(label, labels)} Correct the row, or add the label to `labels`."
        )
