"""From text to token ids, for both kinds of model, so that training, generation and ranking see the same tokens.

    decoder only       input_ids = [bos] prompt answer end        labels = -100 … -100 answer end
    encoder-decoder    input_ids = prompt [eos]                   labels = answer end

What stands in brackets is there if the tokenizer itself adds it; a chat template writes it, or leaves it out, itself.
The answer is the row's lead and completion, its end the tokenizer's eos or what the chat template writes; see `Form`.
A prompt's tokens are those that it has alone, since a model that is asked sees them without the answer. A prompt that
is too long loses tokens; an answer never does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, cast

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from gorp.data.chat import check_date
from gorp.data.collate import IGNORED
from gorp.data.form import PLAIN, Form, forms_of
from gorp.data.split import columns
from gorp.data.tokens import added_tokens, special_tokens, text_ids
from gorp.errors import ConfigError, DataError, ModelError
from gorp.ranges import COUNT, check_ranges


LONGEST_PLACE = 64
"""Characters between the special token that begins an answer's turn and the answer: a role, line breaks, a thought."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How text becomes tokens: how long a prompt and an answer may be, and what day a chat template writes.

    Raises:
        ConfigError: For a length below 1, an unknown way to truncate, or a date that is none.
    """

    max_prompt_tokens: Annotated[int, COUNT] = 512
    """Tokens of a prompt, with those that the tokenizer adds."""
    max_completion_tokens: Annotated[int, COUNT] = 50
    """Tokens of an answer, with its end."""
    truncation: Literal["middle", "end"] = "middle"
    """What a long prompt loses: its middle, so that instruction and "Answer:" both stay, or its end (as published)."""
    date: str = "2025-01-01"
    """What a chat template that writes today's date is told, so that a row is the same row tomorrow."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.truncation not in ("middle", "end"):
            raise ConfigError(f"truncation `{self.truncation}` is unknown; wanted `middle` or `end`.")
        check_date(self.date)


def encode(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, encoder_decoder: bool, encoding: Encoding
) -> Dataset:
    """Encode every row; the loss is on the answer and its end alone.

    Args:
        dataset: Rows with `prompt` and `completion`, and `form` where they are not plain text.
        tokenizer: The model's.
        encoder_decoder: Which kind of model; see the top of this file.
        encoding: Budgets.

    Returns:
        Columns `input_ids` and `labels`, lists of int32, rows in the same order.

    Raises:
        DataError: If an answer with its end exceeds `max_completion_tokens`; the message has the row's number.
        ModelError: If the tokenizer has no eos.
    """
    prompts, completions = columns(dataset)
    forms = forms_of(dataset)
    inputs = encode_prompts(prompts, tokenizer, encoder_decoder=encoder_decoder, encoding=encoding, forms=forms)
    labels = []
    answers = encode_completions(completions, tokenizer, prompts=prompts, encoder_decoder=encoder_decoder, forms=forms)
    for index, answer in enumerate(answers):
        check_answer_length(index, completions[index], answer, encoding)
        if encoder_decoder:
            labels.append(answer)
        else:
            labels.append([IGNORED] * len(inputs[index]) + answer)
            inputs[index] = inputs[index] + answer
    ids = List(Value("int32"))
    return Dataset.from_dict({"input_ids": inputs, "labels": labels}, features=Features(input_ids=ids, labels=ids))


def check_answer_length(index: int, completion: str, ids: Sequence[int], encoding: Encoding) -> None:
    """Refuse an answer over its budget.

    Raises:
        DataError: With the row's number.
    """
    if len(ids) > encoding.max_completion_tokens:
        raise DataError(
            f"row {index} (counted from 0) of the rows to train on: its completion has {len(ids)} tokens with "
            f"eos, more than max_completion_tokens = {encoding.max_completion_tokens}: {completion[:60]!r}. "
            f"Raise the limit or shorten the answer; answers are never cut."
        )


def encode_prompts(
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    encoder_decoder: bool,
    encoding: Encoding,
    forms: Sequence[Form] | None = None,
) -> list[list[int]]:
    """The ids of many prompts, at most `max_prompt_tokens` each.

    A decoder never gets what the tokenizer adds at the end: an eos there would say that nothing follows. To a chat
    nothing is added, since its template writes all of it.

    Raises:
        ConfigError: If the budget leaves no room beside the tokens that the tokenizer adds.
    """
    chats = [False] * len(prompts) if forms is None else [form.chat for form in forms]
    before, after = added_tokens(tokenizer)
    if not encoder_decoder:
        after = []
    room = encoding.max_prompt_tokens - len(before) - len(after)
    if room < 1:
        raise ConfigError(
            f"max_prompt_tokens is {encoding.max_prompt_tokens}, but the tokenizer adds {len(before) + len(after)} "
            f"tokens of its own, so none is left for the prompt. Raise it."
        )
    encoded: list[list[int]] = [[] for _ in prompts]
    for chat in set(chats):
        members = [index for index, each in enumerate(chats) if each == chat]
        for index, ids in zip(members, text_ids([prompts[i] for i in members], tokenizer, control=chat), strict=True):
            if chat:
                encoded[index] = _truncated(ids, encoding.max_prompt_tokens, encoding.truncation)
            else:
                encoded[index] = before + _truncated(ids, room, encoding.truncation) + after
    return encoded


def encode_completions(
    completions: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: Sequence[str],
    encoder_decoder: bool,
    forms: Sequence[Form] | None = None,
) -> list[list[int]]:
    """The ids of answers with their ends; nothing is cut. Behind its prompt, an answer reads as it is written.

    Args:
        completions: The answers.
        tokenizer: The model's.
        prompts: What stands before each. Only the end of a chat's prompt matters, from its last special token on.
        encoder_decoder: Which kind of model.
        forms: Of the rows; all plain when None.

    Raises:
        ModelError: If the tokenizer has no eos.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no eos token, so no answer could ever end. Set `tokenizer.eos_token`.")
    forms = [PLAIN] * len(completions) if forms is None else forms
    keys = [
        (completion, form, "" if encoder_decoder else place)
        for completion, form, place in zip(completions, forms, places(prompts, tokenizer, forms), strict=True)
    ]
    distinct = list(dict.fromkeys(keys))  # a closed label set has few answers and many rows
    known: dict[tuple[str, Form, str], list[int]] = {}
    for chat in (False, True):
        part = [key for key in distinct if key[1].chat == chat]
        encode_part = _answers_alone if encoder_decoder else _answers_behind
        known |= zip(part, encode_part(part, tokenizer, chat), strict=True)
    return [known[key] for key in keys]


def places(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, forms: Sequence[Form]) -> list[str]:
    """What of each prompt the tokens of an answer depend on: of a chat, the text from its last special token on.

    Where that is long, or there is none, ordinary text stands before the answer, and any will do: empty.
    """
    found = special_tokens(tokenizer) if any(form.chat for form in forms) else None
    ends = []
    for prompt, form in zip(prompts, forms, strict=True):
        last = None
        for match in found.finditer(prompt) if found is not None and form.chat else ():
            last = match.start()
        ends.append("" if last is None or len(prompt) - last > LONGEST_PLACE else prompt[last:])
    return ends


def _answers_alone(
    keys: Sequence[tuple[str, Form, str]], tokenizer: PreTrainedTokenizerBase, chat: bool
) -> list[list[int]]:
    """Answers as the beginning of a text, as a decoder behind an encoder writes them."""
    eos = cast(int, tokenizer.eos_token_id)
    if chat:
        return text_ids([f"{form.lead.lstrip()}{text}{form.end}" for text, form, _ in keys], tokenizer, control=True)
    before, after = added_tokens(tokenizer)
    texts = [f"{form.lead.lstrip()}{text}" for text, form, _ in keys]
    whole = [before + ids + after for ids in text_ids(texts, tokenizer)]
    return [ids if ids[-1:] == [eos] else [*ids, eos] for ids in whole]


def _answers_behind(
    keys: Sequence[tuple[str, Form, str]], tokenizer: PreTrainedTokenizerBase, chat: bool
) -> list[list[int]]:
    """Answers as the continuation of a text.

    Some tokenizers put a blank of their own before every text. Behind another text they do not, so the answer is
    encoded behind an anchor that does not merge with it, and the anchor's ids are taken off. In a chat the anchor is
    the end of the prompt.
    """
    texts = [f"{form.lead}{text}{form.end}" for text, form, _ in keys]
    anchors = [
        [*([place] if place else []), *((":", "x", "\n") if text[:1].isspace() else ("\n", ":", ";"))]
        for text, (*_, place) in zip(texts, keys, strict=True)
    ]
    answers: dict[int, list[int]] = {}
    for attempt in range(4):
        open_ = [i for i in range(len(keys)) if i not in answers and attempt < len(anchors[i])]
        heads = text_ids([anchors[i][attempt] for i in open_], tokenizer, control=chat)
        joined = text_ids([anchors[i][attempt] + texts[i] for i in open_], tokenizer, control=chat)
        for i, head, both in zip(open_, heads, joined, strict=True):
            if head and both[: len(head)] == head:
                answers[i] = both[len(head) :]
    left = [i for i in range(len(keys)) if i not in answers]
    answers |= zip(left, text_ids([texts[i] for i in left], tokenizer, control=chat), strict=True)
    end = [] if chat else [cast(int, tokenizer.eos_token_id)]
    return [answers[i] + end for i in range(len(keys))]


def _truncated(ids: list[int], room: int, truncation: str) -> list[int]:
    if len(ids) <= room:
        return ids
    if truncation == "end":
        return ids[:room]
    head = room // 2
    return ids[:head] + ids[len(ids) - (room - head) :]
