"""Make a prompt of what a person writes, as a learned task made its prompts of rows.

A layout is found from the task's entry in the configuration and its rendered rows, so the files that the rows came from
may be gone. A row's prompt, rendered again from its columns, is the prompt that was trained and scored.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from gorp.data.chat import render_chat
from gorp.data.cl_benchmark import official_prompt
from gorp.data.form import PLAIN, Form, forms_of
from gorp.data.formats import TURNS, template_of
from gorp.data.readers import TaskSpec
from gorp.data.rows import Row, check_length, names, text_column
from gorp.data.split import columns
from gorp.data.templates import Template
from gorp.data.turns import read_turns
from gorp.errors import DataError


PLACE = "the prompt"
"""What messages call the row that a person wrote."""

BENCHMARK = "CL_Benchmark "
"""How the source of a task of the CL benchmark begins; category and data set follow."""

_ANSWER, _SYSTEM, _USER = "anotheranswer", "anothersystemtext", "anotherquestion"
"""Texts that no chat template changes, to see what it writes around them."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a task makes prompts. A question is text, a row as in the task's file, or the turns of a conversation."""

    chat: bool = False
    """Whether the model's chat template writes the prompt."""
    template: Template | None = None
    """The template of the columns; None for a chat, and for prompts that are used as they are written."""
    labels: tuple[str, ...] | None = None
    """The closed label set, which a template may write."""
    renamed: Mapping[str, str]
    """Column in the task's file -> the column that the format has."""
    system: str | None = None
    """In a chat: the system text before the first turn of a question that is text."""
    notes: tuple[str, ...] = ()
    """What a person should know before asking, one sentence each."""

    @property
    def columns(self) -> list[str]:
        """The columns that a row must have."""
        if self.chat:
            return ["messages"]
        if self.template is None:
            return ["prompt"]
        return self.template.required or self.template.optional

    def read(self, text: str) -> "str | dict[str, Any]":
        """Return the row that a text is if it is a JSON object with the layout's columns; otherwise the text itself."""
        try:
            value = json.loads(text) if text.lstrip().startswith("{") else None
        except (ValueError, RecursionError):
            return text
        if not isinstance(value, dict):
            return text
        row = self._format_columns(value)
        return value if set(self.columns) <= set(row) or (self.chat and TURNS["sharegpt"] in row) else text

    def turns(self, text: str, before: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
        """Return the conversation `before` with `text` as the user's next turn; a new one begins with `system`."""
        start = [] if self.system is None or before else [{"role": "system", "content": self.system}]
        return [*start, *map(dict, before), {"role": "user", "content": text}]

    def render(
        self,
        question: "str | Mapping[str, Any] | Sequence[Mapping[str, Any]]",
        *,
        tokenizer: PreTrainedTokenizerBase,
        date: str,
    ) -> tuple[str, Form]:
        """Return the prompt and its form.

        Args:
            question: Text; or the columns of a row, whose answer is not used; or, in a chat, the turns so far.
            tokenizer: The model's; its chat template writes a chat.
            date: The date that a chat template writes as today's.

        Raises:
            DataError: If text cannot fill the template, a column is missing, or the chat template refuses the turns.
        """
        row = self._row(question)
        if self.chat:
            answered = [*row.values["messages"], {"role": "assistant", "content": _ANSWER}]
            prompt, _, form = render_chat(Row(PLACE, {"messages": answered}), tokenizer, date)
        elif self.template is None:
            prompt, form = text_column(row, "prompt"), PLAIN
        else:
            prompt, form = self.template.render(row, self.labels), Form(lead=self.template.lead)
        check_length(row, "text", prompt)
        return prompt, form

    def _row(self, question: "str | Mapping[str, Any] | Sequence[Mapping[str, Any]]") -> Row:
        if isinstance(question, str):
            if not question.strip():
                raise DataError(f"{PLACE} is blank; wanted text.")
            if self.chat:
                return Row(PLACE, {"messages": self.turns(question)})
            if len(self.columns) > 1:
                example = json.dumps(dict.fromkeys(self.columns, "..."))
                raise DataError(
                    f"{PLACE}: the task's template has the columns {names(self.columns)}, so one text cannot fill it. "
                    f"Give a JSON object: {example}"
                )
            return Row(PLACE, {self.columns[0]: question})
        if isinstance(question, Mapping):
            row = Row(PLACE, self._format_columns(question))
            return Row(PLACE, {"messages": _asked(row)}) if self.chat else row
        if not self.chat:
            raise DataError(f"{PLACE}: is a conversation, but the task was not trained on chats. Give one text.")
        return Row(PLACE, {"messages": _asked(Row(PLACE, {"messages": list(question)}))})

    def _format_columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row with the columns renamed as in the task's files; it may have the new names already."""
        if not any(old in row for old in self.renamed):
            return dict(row)
        others = {*self.renamed, *self.renamed.values()}
        kept = {name: value for name, value in row.items() if name not in others}
        return kept | {new: row[old] for old, new in self.renamed.items() if old in row}


def _asked(row: Row) -> list[dict[str, Any]]:
    """Return the turns of a row up to the question: without its answer, if the row has one."""
    column = next((name for name in TURNS.values() if name in row.values), "messages")
    turns = read_turns(row, column)
    turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    if not turns:
        raise DataError(f"{row.place}: holds only an answer; wanted at least one turn before it.")
    return turns


def find_layout(
    spec: TaskSpec,
    rows: Dataset,
    *,
    labels: tuple[str, ...] | None,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    date: str,
) -> Layout:
    """Find how a task made the prompts of its rows.

    With `format: auto` the rows tell: only a chat's rows have a chat's form, and of what is written without `template`
    only the default templates end in a space, which is the lead of the answer. That of `text_label` begins with the
    labels.

    Args:
        spec: The task's entry in the configuration that it was trained with; its files are not read.
        rows: Rendered rows of the task.
        labels: The task's closed label set.
        source: Where the rows came from, as the task records it.
        tokenizer: The model's.
        date: The date that the chat template wrote as today's.
    """
    forms, renamed = forms_of(rows), spec.columns
    if any(form.chat for form in forms):
        system, notes = _system_text(columns(rows)[0], tokenizer, date)
        return Layout(chat=True, system=system, renamed=renamed, notes=notes)
    if spec.template is not None:
        return Layout(template=Template(spec.template), labels=labels, renamed=renamed)
    if source.startswith(BENCHMARK) and spec.format in ("auto", "cl_benchmark"):
        return Layout(template=_official(spec, source, labels or ()), labels=labels, renamed={})
    format = spec.format
    if format == "auto" and forms[0].lead:
        start = f"Option: {', '.join(labels or ())}\n"
        labelled = labels is not None and all(prompt.startswith(start) for prompt in columns(rows)[0])
        format = "text_label" if labelled else "alpaca"
    return Layout(template=template_of(format, None, labels), labels=labels, renamed=renamed)


def _official(spec: TaskSpec, source: str, labels: Sequence[str]) -> Template:
    """Return the published prompt of a task of the CL benchmark as a template of its column `sentence`."""
    category, dataset = source.removeprefix(BENCHMARK).partition(", ")[0].split("/", 1)
    named = spec.task_name_in_prompt
    parts = {"category": category, "dataset": dataset, "labels": labels, "task_name_in_prompt": named}
    before, after = official_prompt(_USER, **parts).split(_USER)
    escaped = [text.replace("{", "{{").replace("}", "}}") for text in (before, after)]
    return Template(f"{escaped[0]}{{sentence}}{escaped[1]} ")


def _system_text(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, date: str
) -> tuple[str | None, tuple[str, ...]]:
    """Return the system text with which most of the prompts begin, None if it is none; and notes.

        template(system, user) = head + system + middle + user + …

    so the system text of a prompt is what stands between `head` and the first `middle`, if the template writes that
    text back.
    """
    plain, both = (_written(turns, tokenizer, date) for turns in ([("user", _USER)], _turns(_SYSTEM)))
    if plain is None or both is None:  # the template writes no system text
        return None, ()
    head, _, rest = both.partition(_SYSTEM)
    middle, (start, *_) = rest.partition(_USER)[0], plain.split(_USER)
    if not middle or head == start:
        return None, ("the chat template does not mark a system text, so it is not known whether the rows have one",)
    candidates: Counter[str | None] = Counter()
    for prompt in prompts:
        end = prompt.find(middle, len(head)) if prompt.startswith(head) else -1
        own = len(start) > len(head) and prompt.startswith(start)  # no system text, or one that the template adds
        candidates[None if own or end < 0 else prompt[len(head) : end]] += 1
    found: Counter[str | None] = Counter()
    for system, count in candidates.items():
        found[system if system is None or _written(_turns(system), tokenizer, date) else None] += count
    system, count = found.most_common(1)[0]
    if len(found) == 1:
        return system, ()
    used = "none is used" if system is None else "the most frequent one is used"
    return system, (f"the rows have {len(found)} different system texts; {used} ({count} of {len(prompts)} rows)",)


def _turns(system: str) -> list[tuple[str, str]]:
    return [("system", system), ("user", _USER)]


def _written(turns: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, date: str) -> str | None:
    """Return the prompt that the chat template writes of turns; None if it refuses or changes one of them."""
    messages = [{"role": role, "content": text} for role, text in [*turns, ("assistant", _ANSWER)]]
    try:
        prompt = render_chat(Row(PLACE, {"messages": messages}), tokenizer, date)[0]
    except DataError:
        return None
    return prompt if all(text in prompt for _, text in turns) else None
