"""Texts as a tokenizer writes them: which token names a text holds, and ids with and without them."""

import re
from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from gorp.errors import ModelError


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """What finds the special tokens of `tokenizer` in a text, the longest first; None where it has none."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = {name for name in [*added, *tokenizer.all_special_tokens] if name.strip()}
    return re.compile("|".join(map(re.escape, sorted(names, key=lambda name: (-len(name), name))))) if names else None


def text_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, control: bool = False) -> list[list[int]]:
    """Ids of texts without anything added.

    Args:
        texts: Any number.
        tokenizer: The model's.
        control: Whether `</s>` in a text is the token of that name, as in what a chat template writes. Otherwise it
            is text, in pieces.
    """
    if not texts:
        return []
    found = None if control else special_tokens(tokenizer)
    literal = [index for index, text in enumerate(texts) if found is not None and found.search(text)]
    ids = _ids(texts, tokenizer)
    for index, pieces in zip(literal, _ids([texts[index] for index in literal], tokenizer, split=True), strict=True):
        assert found is not None
        names = set(found.findall(texts[index]))
        whole = set(cast(list[int], tokenizer.convert_tokens_to_ids(list(names)))) & set(pieces)
        ids[index] = _cut(texts[index], found, tokenizer) if whole else pieces
    return ids


def _cut(text: str, found: re.Pattern[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text whose names of special tokens the tokenizer's own vocabulary holds: each name in two parts."""
    # Looking ahead finds the names that begin inside another name too.
    cuts = [match.start() + 1 for match in re.finditer(f"(?={found.pattern})", text)]
    first, *others = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ids = _ids([first], tokenizer)[0]
    for part in others:  # behind a letter, or the tokenizer would begin it with a blank
        head, joined = _ids(["x", f"x{part}"], tokenizer)
        ids += joined[len(head) :] if joined[: len(head)] == head else _ids([part], tokenizer)[0]
    return ids


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text.

    Raises:
        ModelError: If the tokens of a text change when they are added.
    """
    whole = cast(list[int], tokenizer("a", verbose=False)["input_ids"])
    plain = _ids(["a"], tokenizer)[0]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    raise ModelError(
        "the tokenizer writes a text with other tokens when it adds its special ones, so what it adds cannot be told "
        "from the text. Use the model's fast tokenizer (tokenizer.json), or another model."
    )


def _ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, split: bool = False) -> list[list[int]]:
    """`verbose=False`: long prompts are cut later, the tokenizer need not warn of them."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False, split_special_tokens=split
    )
    return cast(list[list[int]], encoded["input_ids"])
