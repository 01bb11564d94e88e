"""How a row's text is put together around its answer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Dataset

from gorp.data.split import columns


@dataclass(frozen=True, slots=True)
class Form:
    """A row is, as text, `prompt + lead + completion + end`. A prompt is read; what follows is written by the model.

    Rows of a chat are as a chat template writes them: the tokens it names are those tokens, and it says how an answer
    ends. In all other rows everything is text, and an answer ends in the tokenizer's eos.
    """

    chat: bool = False
    """Whether a chat template wrote `prompt`, `lead` and `end`."""
    lead: str = ""
    """Between prompt and completion. An encoder-decoder, whose answer begins a text of its own, leaves out blanks."""
    end: str = ""
    """Of a chat: what ends the answer, with the template's token for it last."""


PLAIN = Form()
"""Prompt and completion, exactly."""


def with_forms(prompts: Sequence[str], completions: Sequence[str], forms: Sequence[Form]) -> Dataset:
    """Rows with `prompt` and `completion`, and with `form` where a row has one of its own."""
    table: dict[str, Any] = {"prompt": list(prompts), "completion": list(completions)}
    if any(form != PLAIN for form in forms):
        table["form"] = [asdict(form) for form in forms]
    return Dataset.from_dict(table)


def forms_of(dataset: Dataset) -> list[Form]:
    """The form of every row; rows that say nothing of it are plain."""
    if "form" not in dataset.column_names:
        return [PLAIN] * len(dataset)
    return [PLAIN if form is None else Form(**form) for form in dataset["form"][:]]


def listed(dataset: Dataset) -> list[list[Any]]:
    """Rows as JSON values: prompt and completion, and the form where it is not plain."""
    rows = zip(*columns(dataset), forms_of(dataset), strict=True)
    return [[prompt, answer, *([] if form == PLAIN else [asdict(form)])] for prompt, answer, form in rows]


def from_list(rows: Sequence[Sequence[Any]]) -> Dataset:
    """The inverse of `listed`.

    Raises:
        TypeError, ValueError: For rows that it did not make.
    """
    if not all(len(row) in (2, 3) for row in rows):
        raise ValueError("a row has a prompt, a completion, and at most a form")
    forms = [Form(**row[2]) if len(row) == 3 else PLAIN for row in rows]
    return with_forms([row[0] for row in rows], [row[1] for row in rows], forms)
