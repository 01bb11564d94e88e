"""From text to token ids, for both kinds of model, so that training, generation and ranking see the same tokens.

    decoder only       input_ids = [bos] prompt answer eos        labels = -100 … -100 answer eos
    encoder-decoder    input_ids = prompt [eos]                   labels = answer eos

What stands in brackets is there if the tokenizer itself adds it. A prompt that is too long loses tokens; an answer
never does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gorp.data.split import columns
from gorp.errors import ConfigError, DataError, ModelError


IGNORED = -100
"""Label of a position without loss, the `ignore_index` of torch's cross entropy."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How long a prompt and an answer may be.

    Raises:
        ConfigError: For a length below 1 or an unknown way to truncate.
    """

    max_prompt_tokens: int = 512
    """Tokens of a prompt, with those that the tokenizer adds."""
    max_completion_tokens: int = 50
    """Tokens of an answer, with its eos."""
    truncation: Literal["middle", "end"] = "middle"
    """What a long prompt loses: its middle, so that instruction and "Answer:" both stay, or its end (as published)."""

    def __post_init__(self) -> None:
        for field in ("max_prompt_tokens", "max_completion_tokens"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} is {getattr(self, field)}; wanted at least 1 token.")
        if self.truncation not in ("middle", "end"):
            raise ConfigError(f"truncation `{self.truncation}` is unknown; wanted `middle` or `end`.")


def encode(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, encoder_decoder: bool, encoding: Encoding
) -> Dataset:
    """Encode every row; the loss is on the answer and its eos alone.

    Args:
        dataset: Rows with `prompt` and `completion`.
        tokenizer: The model's.
        encoder_decoder: Which kind of model; see the top of this file.
        encoding: Budgets.

    Returns:
        Columns `input_ids` and `labels`, lists of int32, rows in the same order.

    Raises:
        DataError: If an answer with its eos exceeds `max_completion_tokens`; the message has the row's number.
        ModelError: If the tokenizer has no eos.
    """
    prompts, completions = columns(dataset)
    inputs = encode_prompts(prompts, tokenizer, encoder_decoder=encoder_decoder, encoding=encoding)
    known: dict[tuple[str, bool], list[int]] = {}  # a closed label set has few answers and many rows
    labels = []
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        key = (completion, _ends_in_blank(prompt))
        if key not in known:
            known[key] = encode_completion(completion, tokenizer, prompt=prompt, encoder_decoder=encoder_decoder)
        answer = known[key]
        if len(answer) > encoding.max_completion_tokens:
            raise DataError(
                f"row {index} (counted from 0): its completion has {len(answer)} tokens with eos, more than "
                f"max_completion_tokens = {encoding.max_completion_tokens}: {completion[:60]!r}. "
                f"Raise the limit or shorten the answer; answers are never cut."
            )
        if encoder_decoder:
            labels.append(answer)
        else:
            labels.append([IGNORED] * len(inputs[index]) + answer)
            inputs[index] = inputs[index] + answer
    ids = List(Value("int32"))
    return Dataset.from_dict({"input_ids": inputs, "labels": labels}, features=Features(input_ids=ids, labels=ids))


def encode_prompt(
    prompt: str, tokenizer: PreTrainedTokenizerBase, *, encoder_decoder: bool, encoding: Encoding
) -> list[int]:
    """The ids of one prompt: what `encode` puts before the answer, or into the encoder."""
    return encode_prompts([prompt], tokenizer, encoder_decoder=encoder_decoder, encoding=encoding)[0]


def encode_prompts(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, encoder_decoder: bool, encoding: Encoding
) -> list[list[int]]:
    """The ids of many prompts, at most `max_prompt_tokens` each.

    A decoder never gets what the tokenizer adds at the end: an eos there would say that nothing follows. A prompt whose
    text already begins with bos (chat templates write it) does not get a second one.

    Raises:
        ConfigError: If the budget leaves no room beside the tokens that the tokenizer adds.
    """
    before, after = _added_tokens(tokenizer)
    if not encoder_decoder:
        after = []
    room = encoding.max_prompt_tokens - len(before) - len(after)
    if room < 1:
        raise ConfigError(
            f"max_prompt_tokens is {encoding.max_prompt_tokens}, but the tokenizer adds {len(before) + len(after)} "
            f"tokens of its own, so none is left for the prompt. Raise it."
        )
    encoded = []
    for ids in _plain(prompts, tokenizer):
        body = ids[len(before) :] if before and ids[: len(before)] == before else ids
        encoded.append(before + _truncated(body, room, encoding.truncation) + after)
    return encoded


def encode_completion(
    completion: str, tokenizer: PreTrainedTokenizerBase, *, prompt: str, encoder_decoder: bool
) -> list[int]:
    """The ids of an answer with its eos; nothing is cut.

    After a prompt that does not end in a blank, a decoder reads a blank before the answer, as in running text.

    Args:
        completion: The answer.
        tokenizer: The model's.
        prompt: What stands before it; only its last character matters, and only for decoders.
        encoder_decoder: Which kind of model.

    Raises:
        ModelError: If the tokenizer has no eos.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ModelError("the tokenizer has no eos token, so no answer could ever end. Set `tokenizer.eos_token`.")
    eos = cast(int, eos)
    if encoder_decoder:
        before, after = _added_tokens(tokenizer)
        ids = before + _plain([completion], tokenizer)[0] + after
        return ids if ids[-1] == eos else [*ids, eos]
    # Some tokenizers put a blank of their own before every text. Behind another text they do not, so the answer is
    # encoded behind a character that never merges with what follows, and that character's ids are taken off.
    anchor, text = ("\n", completion) if _ends_in_blank(prompt) else (":", f" {completion}")
    head, joined, alone = _plain([anchor, anchor + text, text], tokenizer)
    return [*(joined[len(head) :] if joined[: len(head)] == head else alone), eos]


@dataclass(frozen=True)
class Collator:
    """Puts encoded rows into one batch, padded at the right.

    Called with a list of rows, it returns int64 tensors: `input_ids` and `attention_mask`, B x L, and `labels`, B x L
    for decoders and B x (length of the longest answer) for encoder-decoders.
    """

    pad_token_id: int
    """Fills `input_ids`; masked, so its value has no effect."""
    label_pad: int = IGNORED
    """Fills `labels`; no loss there."""

    def __call__(self, features: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """The batch of `features`, rows with `input_ids` and `labels`."""
        inputs = [list(row["input_ids"]) for row in features]
        labels = [list(row["labels"]) for row in features]
        return {
            "input_ids": _pad_right(inputs, self.pad_token_id),
            "attention_mask": _pad_right([[1] * len(ids) for ids in inputs], 0),
            "labels": _pad_right(labels, self.label_pad),
        }


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Prompts as one batch with the padding before them, so that a decoder goes on where each of them ends.

    Returns:
        `input_ids` and `attention_mask`, both int64, B x L with L the longest row.
    """
    longest = max(len(row) for row in rows)
    ids = [[pad_token_id] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def _pad_right(rows: list[list[int]], filler: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def _truncated(ids: list[int], room: int, truncation: str) -> list[int]:
    if len(ids) <= room:
        return ids
    if truncation == "end":
        return ids[:room]
    head = room // 2
    return ids[:head] + ids[len(ids) - (room - head) :]


def _ends_in_blank(prompt: str) -> bool:
    return not prompt or prompt[-1].isspace()


def _plain(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids without anything added. `verbose=False`: long prompts are cut here, the tokenizer need not warn of them."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return cast(list[list[int]], encoded["input_ids"])


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text."""
    whole = cast(list[int], tokenizer("a", verbose=False)["input_ids"])
    plain = _plain(["a"], tokenizer)[0]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    raise ModelError(
        "the tokenizer changes a text's tokens when it adds its special ones; such a tokenizer is not known."
    )
