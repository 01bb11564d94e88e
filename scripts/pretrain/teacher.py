"""The public sentence encoder that the models begin from and learn to read from: a BERT with a fast tokenizer.

It is a folder that `AutoModel` and `AutoTokenizer` read, or an installed package that holds such a folder as `model`.
Nothing is downloaded.
"""

import hashlib
import importlib.resources
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertModel


WORD = re.compile(r"\w+|[^\w\s]")
"""A word, to which the tokens of any tokenizer belong by their first character."""


def locate(source: str) -> Path:
    """Find the teacher's folder.

    Args:
        source: A folder, or the name of an installed package with a folder `model`.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: It is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    if source.isidentifier() and find_spec(source):
        folder = Path(str(importlib.resources.files(source) / "model"))
        if (folder / "config.json").exists():
            return folder
    raise FileNotFoundError(
        f"{source} is neither a folder nor an installed package with a folder `model`; "
        "name the folder of an encoder, or install the package."
    )


def origin(source: str) -> dict[str, str]:
    """Say which encoder it is, for `run.json` and the model card.

    Args:
        source: As for `locate`.

    Returns:
        Its `name`, the `license` that its own model card states, and the `sha256` of its weights.
    """
    folder = locate(source)
    card = folder / "README.md"
    stated = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8"), re.MULTILINE) if card.exists() else None
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    name = source if source.isidentifier() else folder.name
    return {"name": name, "license": stated[1] if stated else "not stated", "sha256": digest}


def word_starts(text: str) -> list[int]:
    """Say where the words of a text begin; a text without any has one, at 0."""
    return [found.start() for found in WORD.finditer(text)] or [0]


def owners(text: str, offsets: Sequence[tuple[int, int]], starts: Sequence[int]) -> list[int]:
    """Tell which word each token belongs to.

    Args:
        text: The text.
        offsets: First character and the one after the last, of every token; in order.
        starts: Where the words begin.

    Returns:
        Number of the word, -1 for a token without a visible character.
    """
    result, word = [], 0
    for start, end in offsets:
        at = next((at for at in range(start, end) if not text[at].isspace()), None)
        if at is None:
            result.append(-1)
            continue
        while word + 1 < len(starts) and starts[word + 1] <= at:
            word += 1
        result.append(word)
    return result


def means(hidden: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Average states over the tokens of each word.

    Args:
        hidden: N x L x d.
        owner: Word of each token, N x L, -1 for none; words are numbered through the batch.
        count: Number of words W.

    Returns:
        W x d (zero where a word has no token), and which words have one.
    """
    flat, place = hidden.flatten(0, 1), owner.flatten().masked_fill(owner.flatten() < 0, count)
    sums = hidden.new_zeros(count + 1, hidden.shape[-1]).index_add_(0, place, flat)
    counts = torch.bincount(place, minlength=count + 1)[:, None]
    return (sums / counts.clamp(min=1))[:count], counts[:count, 0] > 0


class Teacher:
    """The encoder on the CPU."""

    def __init__(self, source: str, max_length: int = 128, dtype: torch.dtype = torch.bfloat16) -> None:
        """Load it.

        Args:
            source: As for `locate`.
            max_length: Tokens of its own that it reads of a text, special ones included.
            dtype: Its numbers.
        """
        folder = locate(source)
        self.model: BertModel = AutoModel.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.max_length = max_length
        self.width: int = self.model.config.hidden_size

    @torch.no_grad()
    def read(self, texts: Sequence[str], words: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Read texts.

        Args:
            texts: N texts.
            words: Where the words of each begin; W words in all.

        Returns:
            Means of the last layer over each word (W x d, float32), which words it reached, and over each text with
            its special tokens (N x d).
        """
        encoded = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        offsets = encoded.pop("offset_mapping").tolist()
        hidden = self.model(**encoded).last_hidden_state.float()
        owner, count = torch.full(hidden.shape[:2], -1), 0
        for row, (text, starts) in enumerate(zip(texts, words, strict=True)):
            own = torch.tensor(owners(text, offsets[row], starts))
            owner[row] = torch.where(own < 0, own, own + count)
            count += len(starts)
        mask = encoded["attention_mask"][:, :, None].float()
        return *means(hidden, owner, count), (hidden * mask).sum(1) / mask.sum(1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Give the mean of the last layer over each text, N x d, float32."""
        return self.read(texts, [word_starts(text) for text in texts])[2]
