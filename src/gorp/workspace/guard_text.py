"""Read the guard text that the YAML names (`gate.guard`), and check it before anything is trained."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from gorp.data.plain_text import read_texts
from gorp.errors import ConfigError, DataError
from gorp.evaluation.text_loss import LONGEST, predicted_parts
from gorp.methods import METHODS
from gorp.storage import file_sha256
from gorp.workspace.config import RunConfig
from gorp.workspace.guard_values import LEAST


MOST = 200
"""Most texts that are read, from the beginning of the file."""


@dataclass(frozen=True, kw_only=True)
class GuardText:
    """General text on which every version is scored."""

    texts: tuple[str, ...]
    """At most `MOST`."""
    sha256: str
    """Of the file."""
    note: str
    """What was read, in a sentence."""


def read_guard(config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, encoder_decoder: bool) -> GuardText | None:
    """Return the guard text of a configuration; None if it names none.

    Raises:
        ConfigError: If the method has weights of its own for each task, or there are too few texts to decide.
        DataError: If the file is missing, empty, not text, or no text in it has a token to predict.
    """
    if config.gate.guard is None:
        return None
    if METHODS[config.method].needs_task_id:
        raise ConfigError(
            f"gate.guard: the method `{config.method}` has weights of its own for each task, so there is no one model "
            "to score general text with. Remove `guard`, or use another method."
        )
    path = Path(config.gate.guard)
    try:
        texts, sha256 = read_texts(path, MOST), file_sha256(path)
    except DataError as error:
        raise DataError(f"gate.guard: {error}") from error
    parts = predicted_parts(texts, tokenizer, encoder_decoder=encoder_decoder)
    if not parts:
        raise DataError(f"gate.guard: {path}: no text in it has a second token to predict; wanted running text.")
    if config.gate.guard_margin is not None and len(parts) < LEAST:
        raise ConfigError(
            f"gate.guard_margin: {path} has {len(parts)} texts; wanted at least {LEAST}, because fewer show nothing "
            "with certainty. Add texts, or remove the margin."
        )
    tokens = sum(len(predicted) for _, predicted in parts.values())
    first = f", the first {MOST}" if len(texts) == MOST else ""
    note = f"guard text: {len(parts)} texts of {path.name}{first}, {tokens:,} tokens (at most {LONGEST} of each)"
    return GuardText(texts=tuple(texts), sha256=sha256, note=note)
