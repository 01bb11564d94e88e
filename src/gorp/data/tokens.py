"""Tokenize text, with names of special tokens in it read as text or as these tokens."""

import re
from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from gorp.errors import ModelError


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Return a pattern of the special tokens' names, the longest first; None if the tokenizer has no special tokens."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = {name for name in [*added, *tokenizer.all_special_tokens] if name.strip()}
    return re.compile("|".join(map(re.escape, sorted(names, key=lambda name: (-len(name), name))))) if names else None


def text_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, control: bool = False) -> list[list[int]]:
    """Return the ids of texts, without the special tokens that the tokenizer adds.

    Args:
        texts: Any number of texts.
        tokenizer: The model's.
        control: Whether `</s>` in a text becomes the special token, as in the output of a chat template. Otherwise it
            is text and becomes several tokens.
    """
    if not texts:
        return []
    found = None if control else special_tokens(tokenizer)
    literal = [index for index, text in enumerate(texts) if found is not None and found.search(text)]
    ids = _ids(texts, tokenizer)
    for index, pieces in zip(literal, _ids([texts[index] for index in literal], tokenizer, split=True), strict=True):
        assert found is not None
        names = set(found.findall(texts[index]))
        # The vocabulary may also have the name as an ordinary piece; then `split` does not help.
        unsplit = set(cast(list[int], tokenizer.convert_tokens_to_ids(list(names)))) & set(pieces)
        ids[index] = _ids_of_split_names(texts[index], found, tokenizer) if unsplit else pieces
    return ids


def _ids_of_split_names(text: str, found: re.Pattern[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of a text in which every name of a special token is tokenized in two parts."""
    # The lookahead also finds names that begin inside another name.
    cuts = [match.start() + 1 for match in re.finditer(f"(?={found.pattern})", text)]
    first, *others = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ids = _ids([first], tokenizer)[0]
    for part in others:  # tokenized after a letter: at the start of a text the tokenizer may add a space
        head, joined = _ids(["x", f"x{part}"], tokenizer)
        ids += joined[len(head) :] if joined[: len(head)] == head else _ids([part], tokenizer)[0]
    return ids


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer adds before and after a text.

    Raises:
        ModelError: If adding them changes the other tokens of the text.
    """
    whole = cast(list[int], tokenizer("a", verbose=False)["input_ids"])
    plain = _ids(["a"], tokenizer)[0]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    raise ModelError(
        "the tokens of a text change when the tokenizer adds its special tokens, so the added tokens cannot be "
        "identified. Use the model's fast tokenizer (tokenizer.json), or another model."
    )


def _ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, split: bool = False) -> list[list[int]]:
    """Tokenize without special tokens. `verbose=False` stops warnings about long prompts, which are truncated later."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False, split_special_tokens=split
    )
    return cast(list[list[int]], encoded["input_ids"])
