"""What can be known of a task's answers before a model has seen one: whether they can be written, and can be right."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from gorp.data import Encoding, Form, Task, encode_completions, encode_prompts, forms_of
from gorp.data.chat import writes_date
from gorp.data.encode import check_answer_length
from gorp.data.split import columns
from gorp.data.tokens import special_tokens
from gorp.errors import DataError
from gorp.evaluation.batches import EvalConfig, answer_limit
from gorp.evaluation.compare import comparison_note


UNLIMITED = 2**31
"""Tokens of a prompt that no prompt has."""


@dataclass(frozen=True)
class _Rows:
    """One part of a task, as text and as ids."""

    part: str
    prompts: list[str]
    completions: list[str]
    forms: list[Form]
    read: list[list[int]]
    """Ids of the prompts, none cut."""
    answers: list[list[int]]
    """Ids of the answers with their ends."""


def inspect_task(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    encoder_decoder: bool,
    encoding: Encoding,
    config: EvalConfig,
) -> list[str]:
    """Encode every row of `task` once, refuse what cannot be trained, and say what a user would want to know first.

    Args:
        task: Its train rows may be None.
        tokenizer: The model's.
        encoder_decoder: Which kind of model.
        encoding: Budgets.
        config: How the task will be scored.

    Returns:
        Notes, a sentence each: prompts that are cut, text that the tokenizer cannot write, names of special tokens,
        answers too long to be scored, and what a chat template adds.

    Raises:
        DataError: For an answer over its budget; an answer that would end early, because the tokenizer reads its text
            as a special token; two labels with the same tokens, or one that the tokenizer cannot write.
    """
    notes = [*_about_chat(task, tokenizer, encoding)]
    for part, rows in (("train", task.train), ("eval", task.eval)):
        if rows is None:
            continue
        encoded = _encoded(part, rows, tokenizer, encoder_decoder, encoding)
        if part == "train":
            _check_length(encoded, encoding)
        _check_labels(task, encoded, tokenizer, encoder_decoder)
        notes += _about_prompts(encoded, tokenizer, encoding)
        notes += _about_special_tokens(encoded, tokenizer)
        notes += _about_losses(encoded, tokenizer)
        if part == "eval" and task.metric == "exact_match":
            notes += _about_length(encoded, encoding, config)
    note = comparison_note(task)
    return [*notes, *([] if note is None else [note])]


def _encoded(
    part: str, rows: Dataset, tokenizer: PreTrainedTokenizerBase, encoder_decoder: bool, encoding: Encoding
) -> _Rows:
    prompts, completions = columns(rows)
    forms = forms_of(rows)
    whole = replace(encoding, max_prompt_tokens=UNLIMITED)
    encode_prompts([""], tokenizer, encoder_decoder=encoder_decoder, encoding=encoding)  # is there room for any?
    read = encode_prompts(prompts, tokenizer, encoder_decoder=encoder_decoder, encoding=whole, forms=forms)
    answers = encode_completions(completions, tokenizer, prompts=prompts, encoder_decoder=encoder_decoder, forms=forms)
    return _Rows(part, prompts, completions, forms, read, answers)


def _check_length(rows: _Rows, encoding: Encoding) -> None:
    for index, answer in enumerate(rows.answers):
        check_answer_length(index, rows.completions[index], answer, encoding)


def _check_labels(task: Task, rows: _Rows, tokenizer: PreTrainedTokenizerBase, encoder_decoder: bool) -> None:
    """Refuse labels that cannot be told apart, or not be written."""
    labels, unknown = task.labels or (), _unknown(tokenizer)
    like = {"prompts": rows.prompts[:1] * len(labels), "forms": rows.forms[:1] * len(labels)}
    seen: dict[tuple[int, ...], str] = {}
    found = special_tokens(tokenizer) if rows.forms[0].chat else None
    for label in labels:
        if found is not None and (match := found.search(label)):
            raise DataError(
                f"label `{label}` holds {match[0]!r}, which is a special token of the tokenizer and would be read as "
                f"one in a chat. Write the label otherwise."
            )
    for label, ids in zip(
        labels, encode_completions(labels, tokenizer, encoder_decoder=encoder_decoder, **like), strict=True
    ):
        if unknown is not None and unknown in ids:
            raise DataError(
                f"label `{label}`: the tokenizer has no tokens for it (it writes {tokenizer.unk_token}), so no answer "
                f"could ever be this label. Use other words for the labels, or a model whose tokenizer knows these."
            )
        if (other := seen.setdefault(tuple(ids), label)) != label:
            raise DataError(
                f"labels `{other}` and `{label}` have the same tokens, so no model could tell them apart. Use other "
                f"words."
            )


def _about_chat(task: Task, tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> Iterator[str]:
    rows = task.eval if task.train is None else task.train
    forms = [form for form in forms_of(rows) if form.chat]
    if not forms:
        return
    if leads := [form.lead for form in forms if form.lead.strip()]:
        yield (
            f"the chat template writes {leads[0]!r} before an answer, and not where it asks for one; it is trained as "
            f"the answer's beginning ({len(leads)} of {len(rows)} rows)"
        )
    template, eos = str(tokenizer.chat_template), str(tokenizer.eos_token)
    if forms[0].end == eos and eos not in template and "eos_token" not in template:
        yield f"the chat template writes no token behind an answer; it ends in {tokenizer.eos_token}"
    if writes_date(tokenizer):
        yield f"the chat template writes the date; it is told {encoding.date} (encoding.date)"


def _about_prompts(rows: _Rows, tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> Iterator[str]:
    limit, count = encoding.max_prompt_tokens, len(rows.prompts)
    if long := sum(len(ids) > limit for ids in rows.read):
        yield f"{long} of {count} prompts of {rows.part} exceed {limit} tokens and lose their {encoding.truncation}"
    unknown = _unknown(tokenizer)
    if unknown is not None and (lost := sum(unknown in ids for ids in rows.read)):
        yield f"{lost} of {count} prompts of {rows.part} hold text that the tokenizer reads as {tokenizer.unk_token}"


def _about_special_tokens(rows: _Rows, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    found = special_tokens(tokenizer)
    if found is None:
        return
    held = [
        (index, match[0])
        for index, (prompt, completion, form) in enumerate(zip(rows.prompts, rows.completions, rows.forms, strict=True))
        if not form.chat and (match := found.search(completion) or found.search(prompt))
    ]
    if not held:
        return
    for index, name in held:
        token = tokenizer.convert_tokens_to_ids(name)
        if token in rows.answers[index][:-1]:
            raise DataError(
                f"{rows.part}: row {index} (counted from 0): its completion holds {name!r}, which this tokenizer reads "
                f"as a special token even where it is text. Remove the row, or write it otherwise."
            )
    index, name = held[0]
    yield (
        f"{len(held)} of {len(rows.prompts)} rows of {rows.part} hold the name of a special token, the first {name!r} "
        f"in row {index} (counted from 0); it is read as text. For the turns of a chat use the format `messages`"
    )


def _about_losses(rows: _Rows, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Completions that are another text when their tokens are written out."""
    first = {}
    for index, key in enumerate(zip(rows.completions, rows.forms, strict=True)):
        first.setdefault(key, index)
    texts = tokenizer.batch_decode([rows.answers[index] for index in first.values()], skip_special_tokens=True)
    written = dict(zip(first, texts, strict=True))
    lost = [
        (key[0], written[key])
        for key in zip(rows.completions, rows.forms, strict=True)
        if (key[0].strip() not in written[key] if key[1].chat else key[0].strip() != written[key].strip())
    ]
    if lost:
        before, after = (_short(text) for text in lost[0])
        yield (
            f"{len(lost)} of {len(rows.completions)} completions of {rows.part} cannot be written by the tokenizer as "
            f"they stand: {before!r} becomes {after!r}"
        )


def _about_length(rows: _Rows, encoding: Encoding, config: EvalConfig) -> Iterator[str]:
    limit = answer_limit(encoding, config)
    lengths = [len(ids) - 1 for ids in rows.answers]
    if long := sum(length > limit for length in lengths):
        key = "eval.max_new_tokens" if config.max_new_tokens is not None else "encoding.max_completion_tokens"
        yield (
            f"{long} of {len(lengths)} expected answers are longer than {key} = {limit} tokens (the longest has "
            f"{max(lengths)}): they cannot be right. Raise {key}"
        )


def _unknown(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of text without tokens; None where all text has, as in GPT-2, whose unk is its eos by name."""
    unknown: Any = tokenizer.unk_token_id
    return None if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id) else unknown


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]} …"
