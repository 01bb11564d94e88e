"""Count the tokens of rows, compare them with the limits, and show which tokens of a row are trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from gorp.data import Encoding, encode_completions, encode_prompts
from gorp.data.collate import IGNORED
from gorp.data.encode import encode
from gorp.data.form import with_forms
from gorp.data.row_index import EXAMPLES
from gorp.errors import ConfigError, GorpError
from gorp.evaluation.batches import EvalConfig, answer_limit
from gorp.evaluation.inspect import UNLIMITED
from gorp.models.load import ModelConfig, load_tokenizer, skeleton
from gorp.models.positions import Positions, positions_of
from gorp.progress import Progress
from gorp.rows.lengths import check_longest
from gorp.rows.scan import Rendered


BATCH = 256
"""Rows that are tokenized at once."""

SHOWN_TOKENS = 40
"""Most tokens of an answer in a preview."""

SHOWN_PROMPT = 400
"""Most characters of a prompt in a preview, half of them from each end."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What rows are measured with: a model's tokenizer and positions, and the limits of a configuration."""

    tokenizer: PreTrainedTokenizerBase
    encoder_decoder: bool
    positions: Positions
    encoding: Encoding
    evaluation: EvalConfig


def reader_of(model: ModelConfig, encoding: Encoding, evaluation: EvalConfig) -> Reader:
    """Return the reader of a model; its weights are not read, and those of a hub model are not downloaded.

    Raises:
        ModelError: If the model or its tokenizer cannot be found or used.
    """
    shape = skeleton(model)
    return Reader(
        tokenizer=load_tokenizer(model, weights=False),
        encoder_decoder=bool(shape.config.is_encoder_decoder),
        positions=positions_of(shape),
        encoding=encoding,
        evaluation=evaluation,
    )


def token_counts(
    rows: Sequence[Rendered], reader: Reader, *, what: str, part: str, metric: str, progress: Progress
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return the token counts of rows, what is wrong with them, and what a user should know.

    Args:
        rows: The rows.
        reader: What they are measured with.
        what: The task, for messages.
        part: "train" or "eval".
        metric: The task's metric.
        progress: Shows the progress.

    Returns:
        `rows`, and for `prompt` and `answer` the `median`, `p95` and `max`; then errors and warnings with line numbers.
    """
    encoding = reader.encoding
    try:
        prompts, answers = _counted(rows, reader, what, progress)
    except GorpError as error:
        return {"rows": 0}, [f"task {what}, {part}: {error}"], []
    facts = {"rows": len(rows), "prompt": _summary(prompts), "answer": _summary(answers)}
    problems, warnings = [], []
    long = np.flatnonzero(answers > encoding.max_completion_tokens)
    if part == "train" and len(long):
        problems.append(
            f"task {what}: {len(long)} answers have more tokens than encoding.max_completion_tokens = "
            f"{encoding.max_completion_tokens}, the longest {answers.max()} ({_lines(rows, long)}). Raise the limit or "
            "shorten them; answers are never truncated."
        )
    if cut := np.flatnonzero(prompts > encoding.max_prompt_tokens).tolist():
        warnings.append(
            f"task {what}, {part}: {len(cut)} of {len(rows)} prompts have more than encoding.max_prompt_tokens = "
            f"{encoding.max_prompt_tokens} tokens and lose their {encoding.truncation} ({_lines(rows, cut)})"
        )
    read = np.minimum(prompts, encoding.max_prompt_tokens)
    wanted = answers
    if part == "eval" and metric == "exact_match":
        wanted = np.full_like(answers, answer_limit(encoding, reader.evaluation))
    together = not reader.encoder_decoder
    longest = int(np.argmax(read + wanted * together))
    answer = int(wanted[longest] if together else wanted.max())
    where = f"task {what}, {part}"
    try:
        check_longest(where, int(read[longest]), answer, reader.positions, encoder_decoder=reader.encoder_decoder)
    except ConfigError as error:
        problems.append(str(error))
    return facts, problems, warnings


def masked_row(row: Rendered, reader: Reader) -> dict[str, Any]:
    """Return how a row is trained: its prompt, which counts no loss, and the tokens of its answer, which do.

    Raises:
        GorpError: If the row cannot be encoded.
    """
    one: Dataset = with_forms([row.prompt], [row.completion], [row.form])
    asked: Any = {"encoder_decoder": reader.encoder_decoder, "encoding": reader.encoding}
    encoded = encode(one, reader.tokenizer, **asked)[0]
    trained = [id for id in encoded["labels"] if id != IGNORED]
    read = len(encoded["input_ids"]) - (0 if reader.encoder_decoder else len(trained))
    tokens = [reader.tokenizer.decode([id]) for id in trained[:SHOWN_TOKENS]]
    half = SHOWN_PROMPT // 2
    prompt = row.prompt if len(row.prompt) <= SHOWN_PROMPT else f"{row.prompt[:half]} … {row.prompt[-half:]}"
    return {
        "line": row.line,
        "prompt": prompt,
        "prompt_tokens": read,
        "trained": tokens,
        "trained_tokens": len(trained),
    }


def _counted(rows: Sequence[Rendered], reader: Reader, what: str, progress: Progress) -> tuple[Any, Any]:
    whole = replace(reader.encoding, max_prompt_tokens=UNLIMITED)
    kind: Any = {"encoder_decoder": reader.encoder_decoder}
    prompts, answers = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    with progress.counting(f"counting the tokens of {what}") as show:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            texts, forms = [row.prompt for row in batch], [row.form for row in batch]
            found = encode_prompts(texts, reader.tokenizer, encoding=whole, forms=forms, **kind)
            prompts[start : start + BATCH] = list(map(len, found))
            completions = [row.completion for row in batch]
            found = encode_completions(completions, reader.tokenizer, prompts=texts, forms=forms, **kind)
            answers[start : start + BATCH] = list(map(len, found))
            show(start + len(batch), len(rows))
    return prompts, answers


def _summary(counts: Any) -> dict[str, int]:
    median, p95 = np.percentile(counts, [50, 95], method="higher")
    return {"median": int(median), "p95": int(p95), "max": int(counts.max())}


def _lines(rows: Sequence[Rendered], indices: Any) -> str:
    return lines_text([rows[index].line for index in indices[:EXAMPLES]], len(indices))


def lines_text(lines: Sequence[int], total: int) -> str:
    """Return the numbers of rows for a message: "rows 3, 7, …"."""
    return f"row{'s' * (total > 1)} {', '.join(map(str, lines))}{', …' * (total > len(lines))}"
