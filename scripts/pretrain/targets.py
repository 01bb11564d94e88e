"""What the teacher makes of the packed text, written beside it: one vector for every 16 tokens.

`teacher-<n>.npy` belongs to `train-<n>.npy`: row `i` (float16, width of the teacher) is the mean of the teacher's last
layer over the text of tokens 16 i to 16 i + 15, read in its context of 256 tokens. Rows are written from the start of
the file on; `teacher.json` says how many there are.
"""

import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders

from gorp.storage import read_json, write_json
from scripts.pretrain.teacher import Teacher, origin
from scripts.pretrain.tokenizer import EOS_ID


SEGMENT = 16
"""Tokens of the student per vector."""

STRETCH = 256
"""Tokens of the student that the teacher reads at a time."""

FILE = "teacher.json"


def write_targets(packed: Path, tokenizer: Tokenizer, source: str, part: int, seconds: float, batch: int = 256) -> int:
    """Let the teacher read one part from where it stopped; what there is counts, whenever this is interrupted.

    Args:
        packed: Folder written by `pack`.
        tokenizer: Its tokenizer.
        source: The teacher: a folder or an installed package.
        part: Number of the part.
        seconds: Time to spend.
        batch: Stretches at a time.

    Returns:
        Tokens of this part that have targets now.
    """
    tokens = np.load(packed / f"train-{part}.npy", mmap_mode="r")
    total = len(tokens) // STRETCH
    teacher = Teacher(source)
    told = read_json(packed / FILE) if (packed / FILE).exists() else {"teacher": origin(source), "stretches": {}}
    done = told["stretches"].get(str(part), 0)
    path = packed / f"teacher-{part}.npy"
    shape = total, STRETCH // SEGMENT, teacher.width
    array = np.lib.format.open_memmap(path, "r+" if done else "w+", dtype=np.float16, shape=None if done else shape)
    decoder, end = decoders.ByteLevel(), time.monotonic() + seconds
    while done < total and time.monotonic() < end:
        last = min(done + batch, total)
        rows = np.asarray(tokens[done * STRETCH : last * STRETCH], dtype=np.int64).reshape(-1, shape[1], SEGMENT)
        array[done:last] = teacher.segments([[_text(tokenizer, decoder, row) for row in stretch] for stretch in rows])
        done = last
        array.flush()
        told["stretches"][str(part)] = done
        write_json(packed / FILE, told)
    return done * STRETCH


def _text(tokenizer: Tokenizer, decoder: decoders.Decoder, row: np.ndarray) -> str:
    pieces = ("Ċ" if token == EOS_ID else tokenizer.id_to_token(token) or "" for token in row.tolist())
    return decoder.decode(list(pieces))


class Targets:
    """The vectors of the packed parts, centred, with mean square length 1."""

    def __init__(self, packed: Path) -> None:
        """Open the files as memory maps.

        Args:
            packed: Folder with `teacher.json`.

        Raises:
            FileNotFoundError: The teacher has read nothing there.
        """
        if not (packed / FILE).exists():
            raise FileNotFoundError(f"{packed} holds no {FILE}; run the command `teach` on it first.")
        told = read_json(packed / FILE)
        self.teacher: dict[str, str] = told["teacher"]
        self.arrays: dict[int, np.ndarray] = {}
        for part, stretches in told["stretches"].items():
            array = np.load(packed / f"teacher-{part}.npy", mmap_mode="r")[:stretches]
            self.arrays[int(part)] = array.reshape(-1, array.shape[-1])
        sample = np.concatenate([array[:20_000] for array in self.arrays.values()]).astype(np.float32)
        sample = sample[sample.any(axis=1)]
        self.mean = sample.mean(axis=0)
        self.scale = float(np.sqrt(((sample - self.mean) ** 2).sum(axis=1).mean()))

    @property
    def width(self) -> int:
        """Width of the teacher."""
        return len(self.mean)

    def covered(self, part: int) -> int:
        """Count the tokens at the start of a part that have targets."""
        return len(self.arrays[part]) * SEGMENT if part in self.arrays else 0

    def window(self, part: int, start: int, length: int) -> torch.Tensor:
        """Give the targets of a window.

        Args:
            part: Number of the part.
            start: First token, a multiple of 16.
            length: Tokens, a multiple of 16.

        Returns:
            float32, length / 16 x width; NaN where the teacher had nothing to say.
        """
        raw = np.asarray(self.arrays[part][start // SEGMENT : (start + length) // SEGMENT], dtype=np.float32)
        centred = (raw - self.mean) / self.scale
        centred[~raw.any(axis=1)] = np.nan
        return torch.from_numpy(centred)
