"""Check before training that no row is longer than the model can read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.nn import Module
from transformers import PreTrainedTokenizerBase

from gorp.data import Encoding, Form, Task, encode_prompts, forms_of
from gorp.data.encode import encode_completions, places
from gorp.data.split import columns
from gorp.errors import ConfigError
from gorp.evaluation.batches import EvalConfig, answer_limit, is_encoder_decoder
from gorp.models.positions import Positions, positions_of, trained_length


@dataclass(frozen=True)
class _Longest:
    """Token counts of the longest row in a part of a task."""

    where: str
    prompt: int
    answer: int
    shorter: str = "Lower encoding.max_completion_tokens and eval.max_new_tokens"
    """Advice that makes the answers shorter."""


def check_lengths(
    tasks: Sequence[Task],
    tokenizer: PreTrainedTokenizerBase,
    model: Module,
    *,
    encoding: Encoding,
    evaluation: EvalConfig,
) -> list[str]:
    """Compare the longest rows with the number of positions of the model.

    The rows are tokenized only if the limits in `encoding:` and `eval:` exceed the positions; otherwise all rows fit.

    Returns:
        A line if the model can read the rows, but was trained on shorter ones only.

    Raises:
        ConfigError: If a row does not fit; the message names the setting that would make it fit.
    """
    together = not is_encoder_decoder(model)
    labels = [max(_labels(task, tokenizer, together)) for task in tasks if task.metric == "label_ranking"]
    answer = max(encoding.max_completion_tokens, answer_limit(encoding, evaluation), *labels)
    longest = encoding.max_prompt_tokens + answer * together
    limits, trained = positions_of(model), trained_length(model)
    fits = limits.prompt is None or longest <= limits.prompt
    if fits and (limits.answer is None or answer <= limits.answer) and (trained is None or longest <= trained):
        return []
    found = [item for task in tasks for item in _measured(task, tokenizer, together, encoding, evaluation)]
    for item in sorted(found, key=lambda item: -item.answer):  # longest answer first: it limits the prompt most
        _check(item, limits, together)
    most = max((item.prompt + item.answer * together for item in found), default=0)
    if limits.prompt is None and trained is not None and most > trained:
        return [f"rows have up to {most} tokens, but the model was trained on at most {trained}"]
    return []


def check_budgets(model: Module, encoding: Encoding) -> None:
    """Compare the limits of `encoding` with the positions of `model`, where there are no rows to measure.

    Raises:
        ConfigError: If the limits exceed the positions.
    """
    item = _Longest("the estimate", encoding.max_prompt_tokens, encoding.max_completion_tokens)
    _check(item, positions_of(model), not is_encoder_decoder(model))


def check_longest(where: str, prompt: int, answer: int, limits: Positions, *, encoder_decoder: bool) -> None:
    """Compare the longest row of a part of a task with the positions of the model.

    Args:
        where: Task and part, for the message.
        prompt: Tokens of the prompt, after truncation.
        answer: Tokens of the answer.
        limits: The positions of the model.
        encoder_decoder: Kind of model.

    Raises:
        ConfigError: If the row does not fit.
    """
    _check(_Longest(where, prompt, answer), limits, not encoder_decoder)


def _check(item: _Longest, limits: Positions, together: bool) -> None:
    longest = item.prompt + item.answer * together
    if limits.prompt is not None and longest > limits.prompt:
        room = limits.prompt - item.answer * together
        parts = f" ({item.prompt} of the prompt, {item.answer} of the answer)" if together else ""
        advice = f"Set encoding.max_prompt_tokens to {room}" if room > 0 else item.shorter
        raise ConfigError(
            f"{item.where}: the longest row has {longest} tokens{parts}, but the model has only {limits.prompt} "
            f"positions. {advice}, or use a model with more positions."
        )
    if limits.answer is not None and item.answer > limits.answer:
        raise ConfigError(
            f"{item.where}: answers may have {item.answer} tokens, but the model's decoder has only {limits.answer} "
            f"positions. {item.shorter}."
        )


def _measured(
    task: Task, tokenizer: PreTrainedTokenizerBase, together: bool, encoding: Encoding, evaluation: EvalConfig
) -> Iterator[_Longest]:
    for part, rows in (("train", task.train), ("eval", task.eval)):
        if rows is None:
            continue
        prompts, completions = columns(rows)
        asked = {"encoder_decoder": not together, "forms": forms_of(rows)}
        inputs = encode_prompts(prompts, tokenizer, encoding=encoding, **asked)
        shorter = _Longest.shorter
        if part == "eval" and task.metric == "exact_match":
            lengths = [answer_limit(encoding, evaluation)] * len(inputs)
        elif part == "eval" and task.metric == "label_ranking":
            lengths, shorter = _labels(task, tokenizer, together), "Use shorter labels"
        else:
            lengths = [len(ids) for ids in encode_completions(completions, tokenizer, prompts=prompts, **asked)]
        pairs = [(len(prompt), length) for prompt, length in zip(inputs, lengths, strict=True)]
        prompt, answer = max(pairs, key=lambda pair: pair[0] + pair[1] * together)
        yield _Longest(f"task {task.name}, {part}", prompt, answer if together else max(lengths), shorter)


def _labels(task: Task, tokenizer: PreTrainedTokenizerBase, together: bool) -> list[int]:
    """Return for each eval row the tokens of its longest label: every label is scored after every prompt."""
    prompts, _ = columns(task.eval)
    forms, labels = forms_of(task.eval), task.labels or ()
    keys = list(zip(forms, places(prompts, tokenizer, forms), strict=True))
    longest: dict[tuple[Form, str], int] = {}
    for prompt, key in zip(prompts, keys, strict=True):
        if key not in longest:
            like = {"prompts": [prompt] * len(labels), "forms": [key[0]] * len(labels)}
            longest[key] = max(map(len, encode_completions(labels, tokenizer, encoder_decoder=not together, **like)))
    return [longest[key] for key in keys]
