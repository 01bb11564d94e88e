"""A public sentence encoder as teacher: what it makes of single pieces, and of stretches of text.

The teacher is a folder that `AutoModel` and `AutoTokenizer` read, or an installed package that holds such a folder as
`model`. Nothing is downloaded.
"""

import hashlib
import importlib.resources
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer


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


class Teacher:
    """The encoder in bfloat16 on the CPU."""

    def __init__(self, source: str, max_length: int = 256) -> None:
        """Load it.

        Args:
            source: As for `locate`.
            max_length: Tokens of its own that it reads of a text, special ones included.
        """
        folder = locate(source)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.max_length = max_length
        self.width: int = self.model.config.hidden_size

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: the mean of the last layer over their tokens, special ones included.

        Args:
            texts: N texts.

        Returns:
            float32, N x width.
        """
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        hidden = self.model(**encoded).last_hidden_state.float()
        mask = encoded["attention_mask"][:, :, None].float()
        return (hidden * mask).sum(1) / mask.sum(1)

    @torch.no_grad()
    def segments(self, stretches: Sequence[Sequence[str]], batch: int = 32) -> np.ndarray:
        """Read stretches of text whole and give the mean of the last layer over each of their segments.

        Args:
            stretches: N stretches of S segments each; the text of a stretch is its segments, one after another.
            batch: Stretches at a time.

        Returns:
            float16, N x S x width; zero where a segment has no token of the teacher, as beyond `max_length`.
        """
        result = np.zeros((len(stretches), len(stretches[0]), self.width), dtype=np.float16)
        # Texts of like length go together: less padding.
        order = sorted(range(len(stretches)), key=lambda number: sum(map(len, stretches[number])))
        for at in range(0, len(order), batch):
            chosen = order[at : at + batch]
            result[chosen] = self._segments([stretches[number] for number in chosen])
        return result

    def _segments(self, stretches: Sequence[Sequence[str]]) -> np.ndarray:
        count = len(stretches[0])
        encoded = self.tokenizer(
            ["".join(stretch) for stretch in stretches],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        starts = encoded.pop("offset_mapping")[:, :, 0].contiguous()
        inner = encoded.pop("special_tokens_mask") == 0
        hidden = self.model(**encoded).last_hidden_state.float()
        lengths = torch.tensor([[len(segment) for segment in stretch] for stretch in stretches])
        owner = torch.searchsorted(lengths.cumsum(1), starts, right=True).clamp(max=count - 1)
        share = torch.nn.functional.one_hot(owner, count).float() * inner[:, :, None]
        means = share.mT @ hidden / share.sum(1).clamp(min=1.0)[:, :, None]
        return means.half().numpy()
