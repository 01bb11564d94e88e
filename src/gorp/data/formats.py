"""From columns to prompt and completion: the three ways a row may be written down."""

from collections.abc import Sequence
from string import Formatter
from typing import Any, cast

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from gorp.data.files import Row, text_column
from gorp.errors import ConfigError, DataError, nearest


PLAIN_TEMPLATE = "{text}\nAnswer:"
LABEL_TEMPLATE = "Option: {labels}\n{text}\nAnswer:"
"""Templates for text and label when none is given: without and with a closed label set."""


def detect_format(row: Row, *, template: str | None = None) -> str:
    """The format of a file from its first row: `messages`, `prompt_completion` or `text_label`.

    Raises:
        DataError: If its columns fit none; the message names those found.
    """
    columns = row.values.keys()
    if "messages" in columns:
        return "messages"
    if {"prompt", "completion"} <= columns:
        return "prompt_completion"
    if {"text", "label"} <= columns or (template is not None and "label" in columns):
        return "text_label"
    raise DataError(
        f"{row.place}: no known format has the columns {', '.join(columns) or 'none'}; wanted `prompt` and "
        f"`completion`, or `messages`, or `text` and `label`. Rename columns with `columns`."
    )


def template_fields(template: str) -> list[str]:
    """Names in braces, in order of appearance; `{{` and `}}` stand for braces.

    Raises:
        ConfigError: If a brace is unpaired, or something in braces is more than a name.
    """
    try:
        parts = [(field, *how) for _, field, *how in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigError(f"template {template!r}: {error}. Write `{{{{` for a brace that is text.") from None
    for field, spec, conversion in parts:
        if not field.isidentifier() or spec or conversion:
            raise ConfigError(f"template {template!r}: `{{{field}}}` is no column name; wanted a plain name in braces.")
    return list(dict.fromkeys(field for field, *_ in parts))


def render_rows(
    rows: Sequence[Row],
    *,
    format: str,
    template: str | None,
    labels: tuple[str, ...] | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Dataset:
    """Render rows into a data set with the columns `prompt` and `completion`.

    Args:
        rows: The rows as read.
        format: `prompt_completion`, `messages` or `text_label`.
        template: For `text_label`: the prompt, with columns in braces and `{labels}` for the label set.
        labels: The closed label set; a completion outside it is an error.
        tokenizer: For `messages`: its chat template renders all turns but the last.

    Raises:
        DataError: For the first row that does not fit, with its place.
        ConfigError: For a template that names no column, or names `{labels}` when there are none.
    """
    if format == "messages":
        pairs = [(row, *_from_messages(row, tokenizer)) for row in rows]
    elif format == "text_label":
        pairs = _from_template(rows, template, labels)
    else:
        pairs = [(row, text_column(row, "prompt"), text_column(row, "completion")) for row in rows]
    for row, _, completion in pairs:
        check_label(row, completion, labels)
    prompts, completions = [prompt for _, prompt, _ in pairs], [completion for *_, completion in pairs]
    return Dataset.from_dict({"prompt": prompts, "completion": completions})


def check_label(row: Row, label: str, labels: tuple[str, ...] | None) -> None:
    """Refuse a label outside the closed set; `None` is the set of all texts.

    Raises:
        DataError: With the row's place, the label and the set.
    """
    if labels is not None and label not in labels:
        raise DataError(
            f"{row.place}: label `{label}` is not one of the task's labels: {', '.join(labels)}."
            f"{nearest(label, labels)} Correct the row, or add the label to `labels`."
        )


def _from_template(
    rows: Sequence[Row], template: str | None, labels: tuple[str, ...] | None
) -> list[tuple[Row, str, str]]:
    if template is None:
        template = PLAIN_TEMPLATE if labels is None else LABEL_TEMPLATE
    fields = template_fields(template)
    columns = [field for field in fields if field != "labels"]
    if not columns:
        raise ConfigError(f"template {template!r} names no column, so all prompts would be equal. Use `{{text}}`.")
    fixed = {}
    if "labels" in fields:
        if labels is None:
            raise ConfigError(f"template {template!r} names `{{labels}}`, but the task has none. Give `labels`.")
        fixed = {"labels": ", ".join(labels)}
    return [
        (
            row,
            template.format(**{column: text_column(row, column) for column in columns}, **fixed),
            text_column(row, "label"),
        )
        for row in rows
    ]


def _from_messages(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, str]:
    """Prompt: all turns but the last, as the chat template writes them, up to where the answer begins."""
    if tokenizer is None or not tokenizer.chat_template:
        who = "no tokenizer was given" if tokenizer is None else "the model's tokenizer has no chat template"
        raise DataError(
            f"{row.place}: `messages` are written by a chat template, but {who}. "
            f"Use a chat model, or the format `prompt_completion`."
        )
    *turns, last = _turns(row)
    if last["role"] != "assistant":
        raise DataError(
            f"{row.place}: the last of `messages` is by `{last['role']}`; wanted the answer of `assistant`."
        )
    if not turns:
        raise DataError(f"{row.place}: `messages` holds only the answer; wanted at least one turn before it.")
    try:
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of its own and may raise anything
        raise DataError(f"{row.place}: the tokenizer's chat template refused `messages`: {error}") from error
    return cast(str, prompt), last["content"]


def _turns(row: Row) -> list[dict[str, Any]]:
    turns = row.values.get("messages")
    if not isinstance(turns, list) or not turns:
        found = ", ".join(row.values)
        raise DataError(f"{row.place}: wanted a non-empty list in the column `messages`; columns found: {found}.")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise DataError(f"{row.place}: turn {number} of `messages` is no object with `role` and `content`.")
        for key in ("role", "content"):
            text_column(Row(f"{row.place}, turn {number} of `messages`", turn), key)
    return turns
