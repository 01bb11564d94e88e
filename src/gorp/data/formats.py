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
    render = Renderer(format=format, template=template, labels=labels, tokenizer=tokenizer, date=date)
    if render.template is not None:
        render.template.check(rows, labels)
    return with_forms(*zip(*map(render, rows), strict=True))


class Renderer:
    """Renders one row after another.

    Raises:
        ConfigError: If `Template` refuses the template.
    """

    def __init__(
        self,
        *,
        format: str,
        template: str | None,
        labels: tuple[str, ...] | None,
        tokenizer: PreTrainedTokenizerBase | None,
        date: str,
    ) -> None:
        """Take the arguments of `render_rows`."""
        self.format, self.labels, self.tokenizer, self.date = format, labels, tokenizer, date
        self.template = template_of(format, template, labels)
        self._form = PLAIN_FORM if self.template is None else Form(lead=self.template.lead)

    def __call__(self, row: Row) -> tuple[str, str, Form]:
        """Return prompt, completion and form of a row.

        Raises:
            DataError: If the row is invalid.
        """
        if self.format in TURNS:
            chat = Row(row.place, {"messages": read_turns(row, TURNS[self.format])})
            prompt, completion, form = render_chat(chat, self.tokenizer, self.date)
        else:
            template, form = self.template, self._form
            prompt = text_column(row, "prompt") if template is None else template.render(row, self.labels)
            completion = text_column(row, ANSWERS[self.format])
        check_length(row, "prompt", prompt)
        check_length(row, "completion", completion)
        check_label(row, completion, self.labels)
        return prompt, completion, form

    def asked(self, row: Row) -> str:
        """Return what a row asks, without template, label set and chat template: equal questions have equal text.

        Raises:
            DataError: If the row is invalid.
        """
        if self.format in TURNS:
            return "\n".join(str(turn["content"]) for turn in read_turns(row, TURNS[self.format])[:-1])
        if self.template is None:
            return text_column(row, "prompt")
        found = (row.values.get(name) for name in (*self.template.required, *self.template.optional))
        return "\n".join(value for value in found if isinstance(value, str))


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
    found = Unused(format, template_of(format, template, labels))
    for row in rows:
        found.add(row)
    return found.notes()


class Unused:
    """Collects content that is not used, row by row."""

    def __init__(self, format: str, template: Template | None) -> None:
        """Take the format, and the template of its prompts if it has one."""
        self._turns = TURNS.get(format)
        if self._turns is not None:
            self._used = {self._turns, "system"}
        else:
            read = ["prompt"] if template is None else [*template.required, *template.optional]
            self._used = {ANSWERS[format], *read}
        self._columns: dict[str, bool] = {}
        """Column that is not used -> whether a row has content in it; in order of appearance."""
        self._keys: set[str] = set()

    def add(self, row: Row) -> None:
        """Look at a row."""
        for name, value in row.values.items():
            if name not in self._used and not self._columns.get(name):
                self._columns[name] = _has_content(value)
        if self._turns is not None:
            self._keys |= unread_keys(row, self._turns)

    def notes(self) -> list[str]:
        """Return a note for the columns and one for the keys, if there are any."""
        columns = [name for name, filled in self._columns.items() if filled]
        found = {"columns": columns, "keys of the last turn": sorted(self._keys)}
        return [f"{what} that are not used: {names(f'`{x}`' for x in each)}" for what, each in found.items() if each]


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
