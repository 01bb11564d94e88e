"""From columns to prompt and completion: the three ways a row may be written down."""

from collections.abc import Sequence
from string import Formatter

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from gorp.data.chat import render_chat
from gorp.data.files import Row, text_column
from gorp.data.form import PLAIN, Form, with_forms
from gorp.errors import ConfigError, DataError, nearest


PLAIN_TEMPLATE = "{text}\nAnswer: "
LABEL_TEMPLATE = "Option: {labels}\n{text}\nAnswer: "
"""Templates for text and label when none is given: without and with a closed label set. The label stands right behind
a template. Blanks at its end are written with the label, not read with the prompt: tokenizers join a blank to the word
that follows, so a prompt that ends in one is unlike all text that a model has read."""


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
    date: str,
) -> Dataset:
    """Render rows into a data set with the columns `prompt` and `completion`, and `form` where rows have one.

    Args:
        rows: The rows as read.
        format: `prompt_completion`, `messages` or `text_label`.
        template: For `text_label`: the prompt, with columns in braces and `{labels}` for the label set.
        labels: The closed label set; a completion outside it is an error.
        tokenizer: For `messages`: its chat template writes the conversation.
        date: For `messages`: the day that a chat template is told.

    Raises:
        DataError: For the first row that does not fit, with its place.
        ConfigError: For a template that names no column, or names `{labels}` when there are none.
    """
    if format == "messages":
        written = [render_chat(row, tokenizer, date) for row in rows]
    elif format == "text_label":
        written = _from_template(rows, template, labels)
    else:
        written = [(text_column(row, "prompt"), text_column(row, "completion"), PLAIN) for row in rows]
    for row, (_, completion, _) in zip(rows, written, strict=True):
        check_label(row, completion, labels)
    return with_forms(*zip(*written, strict=True))


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
) -> list[tuple[str, str, Form]]:
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
    prompt = template.rstrip(" ")
    form = Form(lead=template[len(prompt) :])
    return [
        (
            prompt.format(**{column: text_column(row, column) for column in columns}, **fixed),
            text_column(row, "label"),
            form,
        )
        for row in rows
    ]
