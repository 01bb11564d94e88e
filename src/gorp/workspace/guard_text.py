"""Read the guard text that the YAML names (`gate.guard`), and check it before anything is trained."""

from dataclasses import dataclass
from pathlib import Path

from torch.nn import Module
from transformers import PreTrainedTokenizerBase

from gorp.data.plain_text import read_texts
from gorp.errors import ConfigError, DataError
from gorp.evaluation.batches import is_encoder_decoder
from gorp.evaluation.text_loss import predicted_parts, tokens_read
from gorp.methods import METHODS
from gorp.storage import file_sha256
from gorp.workspace.config import RunConfig
from gorp.workspace.guard_values import LEAST


MOST = 200
"""Most texts that are read, from the beginning of the file."""


@dataclass(frozen=True, kw_only=True)
class GuardText:
    """Text that no task trains on, on which every version is scored."""

    texts: tuple[str, ...]
    """At most `MOST`."""
    sha256: str
    """Of the file."""
    name: str
    """Of the file."""


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
            "to score the guard text with. Remove `guard`, or use another method."
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
    return GuardText(texts=tuple(texts), sha256=sha256, name=path.name)


def guard_note(guard: GuardText, model: Module, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a sentence on what a model is given of a guard text."""
    longest = tokens_read(model, tokenizer)
    parts = predicted_parts(guard.texts, tokenizer, encoder_decoder=is_encoder_decoder(model), longest=longest)
    tokens = sum(len(predicted) for _, predicted in parts.values())
    first = f", the first {MOST}" if len(guard.texts) == MOST else ""
    return (
        f"guard text: {len(parts)} texts of {guard.name}{first}, {tokens:,} tokens to predict (at most {longest} of "
        "each are read)"
    )
