"""Describe the text around the answer of a row."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Dataset

from gorp.data.split import columns


@dataclass(frozen=True, slots=True)
class Form:
    """The text of a row is `prompt + lead + completion + end`. The model reads the prompt and writes the rest.

    In a chat, the template writes the row: names of special tokens in it are these tokens, and it decides how an answer
    ends. In all other rows everything is text, and an answer ends in the tokenizer's eos.
    """

    chat: bool = False
    """Whether a chat template wrote `prompt`, `lead` and `end`."""
    lead: str = ""
    """Text between prompt and completion. An encoder-decoder drops leading spaces, because its answer is a text of its
    own."""
    end: str = ""
    """In a chat: the text that ends the answer; its last part is the template's end token. Otherwise empty."""


PLAIN = Form()
"""Form of a row that is only prompt and completion."""


def with_forms(prompts: Sequence[str], completions: Sequence[str], forms: Sequence[Form]) -> Dataset:
    """Return rows with `prompt` and `completion`, and with `form` if any of them is not plain."""
    table: dict[str, Any] = {"prompt": list(prompts), "completion": list(completions)}
    if any(form != PLAIN for form in forms):
        table["form"] = [asdict(form) for form in forms]
    return Dataset.from_dict(table)


def forms_of(dataset: Dataset) -> list[Form]:
    """Return the form of every row; a row without one is plain."""
    if "form" not in dataset.column_names:
        return [PLAIN] * len(dataset)
    return [PLAIN if form is None else Form(**form) for form in dataset["form"][:]]


def listed(dataset: Dataset) -> list[list[Any]]:
    """Return rows as JSON values: prompt, completion, and the form if it is not plain."""
    rows = zip(*columns(dataset), forms_of(dataset), strict=True)
    return [[prompt, answer, *([] if form == PLAIN else [asdict(form)])] for prompt, answer, form in rows]


def from_list(rows: Sequence[Sequence[Any]]) -> Dataset:
    """Return the data set of which `listed` made `rows`.

    Raises:
        TypeError, ValueError: If `rows` do not have that structure.
    """
    if not all(len(row) in (2, 3) for row in rows):
        raise ValueError("wanted rows of a prompt, a completion, and optionally a form")
    forms = [Form(**row[2]) if len(row) == 3 else PLAIN for row in rows]
    return with_forms([row[0] for row in rows], [row[1] for row in rows], forms)
