"""Render prompts from columns: `{column}` must have text, `{column?}` may be blank, `{labels}` is the label set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter

from gorp.data.rows import Row, kind, names, nearest_column, text_column
from gorp.errors import ConfigError, DataError, shown


PLAIN = "{text}\nAnswer: "
LABELLED = "Option: {labels}\n{text}\nAnswer: "
"""Default templates of `text_label`, without and with a closed label set. The label follows the template directly.
Spaces at the end of a template become part of the answer (`Form.lead`), not of the prompt: tokenizers join a space to
the word that follows it, so a prompt that ends in a space is unlike text that the model was trained on."""

ALPACA = "{instruction}\n{input?}\nAnswer: "
"""Default template of `alpaca`."""

LABELS = "labels"


@dataclass(frozen=True)
class Template:
    r"""Template of a prompt.

    A line that has only optional fields is left out if all of them are blank. So
    `"{instruction}\nContext: {input?}"` gives only the instruction for a row without an input.

    Raises:
        ConfigError: If a brace is unpaired, the text in braces is not a plain name, or no column is named.
    """

    text: str
    """The template, with column names in braces; `{{` and `}}` stand for braces."""

    def __post_init__(self) -> None:
        if not (self.required or self.optional):
            raise ConfigError(
                f"template {self._quoted} names no column, so all prompts would be the same. Write `{{text}}` for one."
            )

    @property
    def lead(self) -> str:
        """Spaces at the end of the template, which are not part of the prompt."""
        return self.text[len(self.text.rstrip(" ")) :]

    @property
    def _quoted(self) -> str:
        return repr(shown(self.text, 200))

    @cached_property
    def _lines(self) -> list[list[tuple[str, str | None]]]:
        """For each line its pieces: literal text, and the field after it (with its `?`) or None."""
        lines = []
        for line in self.text.rstrip(" ").split("\n"):
            try:
                parts = list(Formatter().parse(line))
            except ValueError as error:
                raise ConfigError(f"template {self._quoted}: {error}. Write `{{{{` for a brace that is text.") from None
            for _, field, spec, conversion in parts:
                if field is not None and (not field.removesuffix("?").isidentifier() or spec or conversion):
                    raise ConfigError(
                        f"template {self._quoted}: `{{{shown(field)}}}` is not a column name; wanted a plain name in "
                        f"braces, with `?` after it if the column may be blank."
                    )
                if field == f"{LABELS}?":
                    raise ConfigError(f"template {self._quoted}: `{{labels}}` is not a column. Remove its `?`.")
            lines.append([(text, field) for text, field, *_ in parts])
        return lines

    @cached_property
    def fields(self) -> list[str]:
        """All fields in order of appearance, with their `?`."""
        return list(dict.fromkeys(field for line in self._lines for _, field in line if field is not None))

    @cached_property
    def required(self) -> list[str]:
        """Columns that must have text."""
        return [field for field in self.fields if field != LABELS and not field.endswith("?")]

    @cached_property
    def optional(self) -> list[str]:
        """Columns that may be blank, null, or missing from a row."""
        return [name for field in self.fields if field.endswith("?") and (name := field[:-1]) not in self.required]

    def check(self, rows: Sequence[Row], labels: Sequence[str] | None) -> None:
        """Check that the rows can fill the template.

        Raises:
            ConfigError: If it names `{labels}` and there are none.
            DataError: If no row has an optional column, which is probably misspelt.
        """
        if LABELS in self.fields and labels is None:
            raise ConfigError(f"template {self._quoted} names `{{labels}}`, but the task has none. Give `labels`.")
        for column in self.optional if self.text != ALPACA else ():
            if not any(column in row.values for row in rows):
                raise DataError(
                    f"{rows[0].place}: the template names `{{{column}?}}`, but no row has this column; found: "
                    f"{names(rows[0].values)}.{nearest_column(column, rows[0])}"
                )

    def render(self, row: Row, labels: Sequence[str] | None) -> str:
        """Return the prompt of one row.

        Raises:
            DataError: If a required column is missing or blank, or an optional one is not text.
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
