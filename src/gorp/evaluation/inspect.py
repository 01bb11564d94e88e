"""Check a task's rows before the model is used: whether its answers can be encoded, and can be scored as correct."""

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
"""A limit on the tokens of a prompt that no prompt reaches."""


@dataclass(frozen=True)
class _Rows:
    """One split of a task, as text and as ids."""

    part: str
    prompts: list[str]
    completions: list[str]
    forms: list[Form]
    prompt_ids: list[list[int]]
    """Ids of the prompts, not truncated."""
    answer_ids: list[list[int]]
    """Ids of the answers with their ends."""


def inspect_task(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    encoder_decoder: bool,
    encoding: Encoding,
    config: EvalConfig,
) -> list[str]:
    """Encode every row of `task` once, refuse rows that cannot be trained, and return notes for the user.

    Args:
        task: Its train rows may be None.
        tokenizer: The model's.
        encoder_decoder: Kind of model.
        encoding: Limits.
        config: Settings of scoring.

    Returns:
        Notes, one sentence each: truncated prompts, text that the tokenizer cannot encode, names of special tokens,
        answers that are too long to be scored, and text that a chat template adds.

    Raises:
        DataError: If an answer is over its limit, the tokenizer reads part of an answer as a special token, two labels
            have the same tokens, or the tokenizer cannot encode a label.
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
        notes += _about_changed_completions(encoded, tokenizer)
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
    encode_prompts([""], tokenizer, encoder_decoder=encoder_decoder, encoding=encoding)  # raises if no token is left
    prompt_ids = encode_prompts(prompts, tokenizer, encoder_decoder=encoder_decoder, encoding=whole, forms=forms)
    answer_ids = encode_completions(
        completions, tokenizer, prompts=prompts, encoder_decoder=encoder_decoder, forms=forms
    )
    return _Rows(part, prompts, completions, forms, prompt_ids, answer_ids)


def _check_length(rows: _Rows, encoding: Encoding) -> None:
    for index, answer in enumerate(rows.answer_ids):
        check_answer_length(index, rows.completions[index], answer, encoding)


def _check_labels(task: Task, rows: _Rows, tokenizer: PreTrainedTokenizerBase, encoder_decoder: bool) -> None:
    """Raise DataError if two labels have the same tokens, or the tokenizer cannot encode one."""
    labels, unknown = task.labels or (), _unknown(tokenizer)
    like = {"prompts": rows.prompts[:1] * len(labels), "forms": rows.forms[:1] * len(labels)}
    seen: dict[tuple[int, ...], str] = {}
    found = special_tokens(tokenizer) if rows.forms[0].chat else None
    for label in labels:
        if found is not None and (match := found.search(label)):
            raise DataError(
                f"label `{label}` contains {match[0]!r}, which is a special token of the tokenizer and would not be "
                f"read as text in a chat. Write the label differently."
            )
    for label, ids in zip(
        labels, encode_completions(labels, tokenizer, encoder_decoder=encoder_decoder, **like), strict=True
    ):
        if unknown is not None and unknown in ids:
            raise DataError(
                f"label `{label}`: the tokenizer has no tokens for it (it writes {tokenizer.unk_token}), so the model "
                f"can never answer with it. Use other words for the labels, or a model whose tokenizer has them."
            )
        if (other := seen.setdefault(tuple(ids), label)) != label:
            raise DataError(
                f"labels `{other}` and `{label}` have the same tokens, so a model cannot distinguish them. Use other "
                f"words."
            )


def _about_chat(task: Task, tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> Iterator[str]:
    rows = task.eval if task.train is None else task.train
    forms = [form for form in forms_of(rows) if form.chat]
    if not forms:
        return
    if leads := [form.lead for form in forms if form.lead.strip()]:
        yield (
            f"the chat template writes {leads[0]!r} before an answer, but not at the end of a prompt; it is trained as "
            f"the beginning of the answer ({len(leads)} of {len(rows)} rows)"
        )
    template, eos = str(tokenizer.chat_template), str(tokenizer.eos_token)
    if forms[0].end == eos and eos not in template and "eos_token" not in template:
        yield f"the chat template writes no end token after an answer; {tokenizer.eos_token} is added"
    if writes_date(tokenizer):
        yield f"the chat template writes the date; it gets {encoding.date} (encoding.date)"


def _about_prompts(rows: _Rows, tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> Iterator[str]:
    limit, count = encoding.max_prompt_tokens, len(rows.prompts)
    if long := sum(len(ids) > limit for ids in rows.prompt_ids):
        yield f"{long} of {count} prompts of {rows.part} exceed {limit} tokens and lose their {encoding.truncation}"
    unknown = _unknown(tokenizer)
    if unknown is not None and (lost := sum(unknown in ids for ids in rows.prompt_ids)):
        yield f"{lost} of {count} prompts of {rows.part} have text that the tokenizer reads as {tokenizer.unk_token}"


def _about_special_tokens(rows: _Rows, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    found = special_tokens(tokenizer)
    if found is None:
        return
    named = [
        (index, match[0])
        for index, (prompt, completion, form) in enumerate(zip(rows.prompts, rows.completions, rows.forms, strict=True))
        if not form.chat and (match := found.search(completion) or found.search(prompt))
    ]
    if not named:
        return
    for index, name in named:
        token = tokenizer.convert_tokens_to_ids(name)
        if token in rows.answer_ids[index][:-1]:
            raise DataError(
                f"{rows.part}: row {index} (counted from 0): its completion contains {name!r}, which this tokenizer "
                f"always reads as a special token. Remove the row, or write it differently."
            )
    index, name = named[0]
    yield (
        f"{len(named)} of {len(rows.prompts)} rows of {rows.part} contain the name of a special token, the first "
        f"{name!r} in row {index} (counted from 0); it is read as text. For chats use the format `messages`"
    )


def _about_changed_completions(rows: _Rows, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Report completions that change when they are encoded and decoded."""
    first = {}
    for index, key in enumerate(zip(rows.completions, rows.forms, strict=True)):
        first.setdefault(key, index)
    texts = tokenizer.batch_decode([rows.answer_ids[index] for index in first.values()], skip_special_tokens=True)
    decoded = dict(zip(first, texts, strict=True))
    changed = [
        (key[0], decoded[key])
        for key in zip(rows.completions, rows.forms, strict=True)
        if (key[0].strip() not in decoded[key] if key[1].chat else key[0].strip() != decoded[key].strip())
    ]
    if changed:
        before, after = (_short(text) for text in changed[0])
        yield (
            f"{len(changed)} of {len(rows.completions)} completions of {rows.part} are changed by the tokenizer: "
            f"{before!r} becomes {after!r}"
        )


def _about_length(rows: _Rows, encoding: Encoding, config: EvalConfig) -> Iterator[str]:
    limit = answer_limit(encoding, config)
    lengths = [len(ids) - 1 for ids in rows.answer_ids]
    if long := sum(length > limit for length in lengths):
        key = "eval.max_new_tokens" if config.max_new_tokens is not None else "encoding.max_completion_tokens"
        yield (
            f"{long} of {len(lengths)} expected answers are longer than {key} = {limit} tokens (the longest has "
            f"{max(lengths)}), so the model cannot answer them correctly. Raise {key}"
        )


def _unknown(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of unknown text; None if the tokenizer encodes all text, as GPT-2's does (its unk is eos)."""
    unknown: Any = tokenizer.unk_token_id
    return None if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id) else unknown


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]} …"
