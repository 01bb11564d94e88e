"""Encode rows as token ids for both kinds of model. Training, generation and ranking use the same tokens.

    decoder only       input_ids = [bos] prompt answer end        labels = -100 … -100 answer end
    encoder-decoder    input_ids = prompt [eos]                   labels = answer end

Tokens in brackets are there if the tokenizer adds them; in a chat, the template decides. "answer" is the row's lead and
completion; "end" is the tokenizer's eos, or what the chat template writes; see `Form`. The prompt is tokenized on its
own, because at inference the model gets it without the answer. A prompt that is too long is truncated; an answer never
is.
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


LONGEST_TAIL = 64
"""Most characters of a prompt from its last special token on (a role, line breaks, an empty thought) for which they
are kept as the context in which the answer is tokenized."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Limits on the tokens of prompts and answers, and the date that a chat template writes.

    Raises:
        ConfigError: If a length is below 1, `truncation` is unknown, or `date` is not a date.

    Example:
        >>> from gorp import Encoding
        >>> Encoding(max_prompt_tokens=128).max_completion_tokens
        50
    """

    max_prompt_tokens: Annotated[int, COUNT] = 512
    """Most tokens of a prompt, including those that the tokenizer adds."""
    max_completion_tokens: Annotated[int, COUNT] = 50
    """Most tokens of an answer, including its end."""
    truncation: Literal["middle", "end"] = "middle"
    """The part that a long prompt loses: its middle, so that instruction and "Answer:" both stay, or its end (as
    published)."""
    date: str = "2025-01-01"
    """Today's date for chat templates that write it. It is fixed, so that a row is encoded the same way every day."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.truncation not in ("middle", "end"):
            raise ConfigError(f"truncation `{self.truncation}` is unknown; wanted `middle` or `end`.")
        check_date(self.date)


def encode(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, encoder_decoder: bool, encoding: Encoding
) -> Dataset:
    """Encode every row. Labels cover only the answer and its end.

    Args:
        dataset: Rows with `prompt` and `completion`, and `form` if they are not plain text.
        tokenizer: The model's.
        encoder_decoder: Kind of model; see the top of this file.
        encoding: Limits.

    Returns:
        Rows in the same order, with the columns `input_ids` and `labels`, lists of int32.

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
    """Check that an answer is within its limit.

    Raises:
        DataError: If it is longer; the message has the row's number.
    """
    if len(ids) > encoding.max_completion_tokens:
        raise DataError(
            f"row {index} (counted from 0) of the training rows: its completion has {len(ids)} tokens including "
            f"eos, more than max_completion_tokens = {encoding.max_completion_tokens}: {completion[:60]!r}. "
            f"Raise the limit or shorten the answer; answers are never truncated."
        )


def encode_prompts(
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    encoder_decoder: bool,
    encoding: Encoding,
    forms: Sequence[Form] | None = None,
) -> list[list[int]]:
    """Return the ids of the prompts, at most `max_prompt_tokens` each.

    For a decoder, the tokens that the tokenizer adds at the end are left out: an eos there would end the text before
    the answer. Nothing is added to a chat, because its template writes the special tokens itself.

    Raises:
        ConfigError: If the limit leaves no room for tokens besides those that the tokenizer adds.
    """
    chats = [False] * len(prompts) if forms is None else [form.chat for form in forms]
    before, after = added_tokens(tokenizer)
    if not encoder_decoder:
        after = []
    room = encoding.max_prompt_tokens - len(before) - len(after)
    if room < 1:
        raise ConfigError(
            f"max_prompt_tokens is {encoding.max_prompt_tokens}, and the tokenizer adds {len(before) + len(after)} "
            f"special tokens, so none is left for the prompt. Raise max_prompt_tokens."
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
    """Return the ids of the answers with their ends; nothing is truncated.

    Decoded after its prompt, an answer is the completion, character for character.

    Args:
        completions: The answers.
        tokenizer: The model's.
        prompts: The prompt of each answer. Only the end of a chat's prompt matters, from its last special token on.
        encoder_decoder: Kind of model.
        forms: Forms of the rows; None if all are plain.

    Raises:
        ModelError: If the tokenizer has no eos.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no eos token, which ends an answer. Set `tokenizer.eos_token`.")
    forms = [PLAIN] * len(completions) if forms is None else forms
    keys = [
        (completion, form, "" if encoder_decoder else tail)
        for completion, form, tail in zip(completions, forms, places(prompts, tokenizer, forms), strict=True)
    ]
    distinct = list(dict.fromkeys(keys))  # a closed label set has few answers and many rows
    known: dict[tuple[str, Form, str], list[int]] = {}
    for chat in (False, True):
        part = [key for key in distinct if key[1].chat == chat]
        encode_part = _answers_of_encoder_decoder if encoder_decoder else _answers_of_decoder
        known |= zip(part, encode_part(part, tokenizer, chat), strict=True)
    return [known[key] for key in keys]


def places(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, forms: Sequence[Form]) -> list[str]:
    """Return the part of each prompt that affects the tokens of its answer: in a chat, from the last special token on.

    It is empty if ordinary text precedes the answer: outside a chat, without a special token, or if the part is longer
    than `LONGEST_TAIL`.
    """
    found = special_tokens(tokenizer) if any(form.chat for form in forms) else None
    tails = []
    for prompt, form in zip(prompts, forms, strict=True):
        last = None
        for match in found.finditer(prompt) if found is not None and form.chat else ():
            last = match.start()
        tails.append("" if last is None or len(prompt) - last > LONGEST_TAIL else prompt[last:])
    return tails


def _answers_of_encoder_decoder(
    keys: Sequence[tuple[str, Form, str]], tokenizer: PreTrainedTokenizerBase, chat: bool
) -> list[list[int]]:
    """Encode answers as the beginning of a text, as the decoder of an encoder-decoder writes them."""
    eos = cast(int, tokenizer.eos_token_id)
    if chat:
        return text_ids([f"{form.lead.lstrip()}{text}{form.end}" for text, form, _ in keys], tokenizer, control=True)
    before, after = added_tokens(tokenizer)
    texts = [f"{form.lead.lstrip()}{text}" for text, form, _ in keys]
    whole = [before + ids + after for ids in text_ids(texts, tokenizer)]
    return [ids if ids[-1:] == [eos] else [*ids, eos] for ids in whole]


def _answers_of_decoder(
    keys: Sequence[tuple[str, Form, str]], tokenizer: PreTrainedTokenizerBase, chat: bool
) -> list[list[int]]:
    """Encode answers as the continuation of a text.

    Some tokenizers add a space before the first word of a text. So the answer is encoded after an anchor text that does
    not merge with it, and the anchor's ids are removed. In a chat the anchor is the end of the prompt.
    """
    texts = [f"{form.lead}{text}{form.end}" for text, form, _ in keys]
    anchors = [
        [*([tail] if tail else []), *((":", "x", "\n") if text[:1].isspace() else ("\n", ":", ";"))]
        for text, (*_, tail) in zip(texts, keys, strict=True)
    ]
    answers: dict[int, list[int]] = {}
    for attempt in range(4):
        open_ = [i for i in range(len(keys)) if i not in answers and attempt < len(anchors[i])]
        heads = text_ids([anchors[i][attempt] for i in open_], tokenizer, control=chat)
        joined = text_ids([anchors[i][attempt] + texts[i] for i in open_], tokenizer, control=chat)
        for i, head, both in zip(open_, heads, joined, strict=True):
            if head and both[: len(head)] == head:  # the anchor did not merge with the answer
                answers[i] = both[len(head) :]
    rest = [i for i in range(len(keys)) if i not in answers]  # every anchor merged: encode the answer on its own
    answers |= zip(rest, text_ids([texts[i] for i in rest], tokenizer, control=chat), strict=True)
    end = [] if chat else [cast(int, tokenizer.eos_token_id)]
    return [answers[i] + end for i in range(len(keys))]


def _truncated(ids: list[int], room: int, truncation: str) -> list[int]:
    if len(ids) <= room:
        return ids
    if truncation == "end":
        return ids[:room]
    head = room // 2
    return ids[:head] + ids[len(ids) - (room - head) :]
