"""Prompts from columns: `{column}` must hold text, `{column?}` may be blank, `{labels}` is the label set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter

from gorp.data.rows import Row, kind, names, nearest_column, text_column
from gorp.errors import ConfigError, DataError, shown


PLAIN = "{text}\nAnswer: "
LABELLED = "Option: {labels}\n{text}\nAnswer: "
"""For text and label when none is given: without and with a closed label set. The label stands right behind a template.
Blanks at its end are written with the label, not read with the prompt: tokenizers join a blank to the word that
follows, so a prompt that ends in one is unlike all text that a model has read."""

ALPACA = "{instruction}\n{input?}\nAnswer: "
"""For alpaca rows when none is given."""

LABELS = "labels"


@dataclass(frozen=True)
class Template:
    r"""The prompt of a row.

    A line whose fields are all optional, at least one of them, is left out where all of them are blank. So
    `"{instruction}\nContext: {input?}"` is the instruction alone in a row without an input.

    Raises:
        ConfigError: If a brace is unpaired, something in braces is more than a name, or no column is named.
    """

    text: str
    """With names in braces; `{{` and `}}` stand for braces."""

    def __post_init__(self) -> None:
        if not (self.required or self.optional):
            raise ConfigError(
                f"template {self._quoted} names no column, so all prompts would be equal. Use `{{text}}`."
            )

    @property
    def lead(self) -> str:
        """The blanks at its end, which are no part of the prompt."""
        return self.text[len(self.text.rstrip(" ")) :]

    @property
    def _quoted(self) -> str:
        return repr(shown(self.text, 200))

    @cached_property
    def _lines(self) -> list[list[tuple[str, str | None]]]:
        """Of each line, its pieces: text, and the field behind it (with its `?`) or None."""
        lines = []
        for line in self.text.rstrip(" ").split("\n"):
            try:
                parts = list(Formatter().parse(line))
            except ValueError as error:
                raise ConfigError(f"template {self._quoted}: {error}. Write `{{{{` for a brace that is text.") from None
            for _, field, spec, conversion in parts:
                if field is not None and (not field.removesuffix("?").isidentifier() or spec or conversion):
                    raise ConfigError(
                        f"template {self._quoted}: `{{{shown(field)}}}` is no column name; wanted a plain name in "
                        f"braces, with `?` behind it where the column may be blank."
                    )
                if field == f"{LABELS}?":
                    raise ConfigError(f"template {self._quoted}: `{{labels}}` is no column and takes no `?`.")
            lines.append([(text, field) for text, field, *_ in parts])
        return lines

    @cached_property
    def fields(self) -> list[str]:
        """All fields in order of appearance, as they are written."""
        return list(dict.fromkeys(field for line in self._lines for _, field in line if field is not None))

    @cached_property
    def required(self) -> list[str]:
        """Columns that must hold text."""
        return [field for field in self.fields if field != LABELS and not field.endswith("?")]

    @cached_property
    def optional(self) -> list[str]:
        """Columns that may be blank, null, or missing from a row."""
        return [name for field in self.fields if field.endswith("?") and (name := field[:-1]) not in self.required]

    def check(self, rows: Sequence[Row], labels: Sequence[str] | None) -> None:
        """Refuse a template that the rows cannot fill.

        Raises:
            ConfigError: For `{labels}` without labels.
            DataError: For an optional column that no row has.
        """
        if LABELS in self.fields and labels is None:
            raise ConfigError(f"template {self._quoted} names `{{labels}}`, but the task has none. Give `labels`.")
        for column in self.optional if self.text != ALPACA else ():
            if not any(column in row.values for row in rows):
                raise DataError(
                    f"{rows[0].place}: the template names `{{{column}?}}`, a column that no row has; found: "
                    f"{names(rows[0].values)}.{nearest_column(column, rows[0])}"
                )

    def render(self, row: Row, labels: Sequence[str] | None) -> str:
        """The prompt of one row.

        Raises:
            DataError: For a required column that is missing or blank, or an optional one that is no text.
        """
        values = {
            column: text_column(
                row, column, blank=f"Remove the row, or write `{{{column}?}}` in the template if it may be blank."
            )
            for column in self.required
        }
        for column in self.optional:
            value = row.values.get(column)
            if value is not None and not isinstance(value, str):
                raise DataError(f"{row.place}: `{column}` is {kind(value)}; wanted text.")
            values[column] = value if value is not None and value.strip() else ""
        if labels is not None:
            values[LABELS] = ", ".join(labels)
        lines = []
        for line in self._lines:
            fields = [field for _, field in line if field is not None]
            if fields and all(field.endswith("?") and not values[field[:-1]] for field in fields):
                continue
            lines.append("".join(text + ("" if f is None else values[f.removesuffix("?")]) for text, f in line))
        return "\n".join(lines)
