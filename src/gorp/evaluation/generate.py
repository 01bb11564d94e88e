"""Generate greedy answers in free text, in batches."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module
from transformers import GenerationConfig, PreTrainedTokenizerBase

from gorp.data import PLAIN, Encoding, Form, encode_completions, encode_prompts
from gorp.data.tokens import text_ids
from gorp.evaluation.batches import (
    EvalConfig,
    Progress,
    answer_limit,
    batches_by_length,
    can_be_padded,
    evaluating,
    is_encoder_decoder,
    pad_token_id,
    tokens_at_once,
    without_peft,
)
from gorp.evaluation.decode import Decoded, answer, answer_with_generate
from gorp.evaluation.likelihood import log_likelihoods
from gorp.evaluation.reading import Reading, encode, read_by_decoder, read_start_token


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The model's answer to a prompt."""

    text: str
    """Only new text, without special tokens, without the row's lead, and stripped."""
    log_probability: float | None = None
    """Σₜ log p of its tokens, with its end if it has one, in nats; None if no right answer was given."""
    nll: float | None = None
    """-ℓ / n of the right answer, whose n tokens include its end: nats per token; None if none was given."""


def generate_answers(
    model: Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    encoding: Encoding,
    config: EvalConfig,
    forms: Sequence[Form] | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Return the model's answer to every prompt as text; see `answer_prompts`.

    Args:
        model: A transformers model that can `generate`, or a PEFT model around one.
        tokenizer: The model's tokenizer.
        prompts: Rendered text, any number of rows.
        encoding: Limits on the tokens of a prompt, as in training.
        config: Batch size and length of an answer; `limit` is not used here.
        forms: Forms of the rows; None if all are plain.
        progress: Called with (rows done, all rows) after every batch.

    Returns:
        One answer per prompt, in the given order: only new text, without special tokens, without the row's lead, and
        stripped.
    """
    asked: Any = {"encoding": encoding, "config": config, "forms": forms, "progress": progress}
    return [answer.text for answer in answer_prompts(model, tokenizer, prompts, **asked)]


def answer_prompts(
    model: Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    expected: Sequence[str] | None = None,
    *,
    encoding: Encoding,
    config: EvalConfig,
    forms: Sequence[Form] | None = None,
    progress: Progress | None = None,
) -> list[Answer]:
    """Generate the model's answer to every prompt, with the most probable token at each step.

        yₜ = argmax p(· | prompt, y₁ … yₜ₋₁)    until an end token or `answer_limit(encoding, config)` tokens

    End tokens are the tokenizer's eos, those stored with the model, and the token with which a chat template ends an
    answer. Padding is masked, so a row gets the same answer in a batch as alone. Sampling settings and penalties stored
    with the model are not used. The random state and the mode of every submodule do not change.

    Args:
        model: A transformers model that can `generate`, or a PEFT model around one.
        tokenizer: The model's tokenizer.
        prompts: Rendered text, any number of rows.
        expected: The right answers, if their log-likelihood is wanted. That of a row whose answer has the tokens of
            the right one follows from the logits that chose them; the others are computed after the cached prompt. The
            answers are the same with and without it.
        encoding: Limits on the tokens of a prompt, as in training.
        config: Batch size and length of an answer; `limit` is not used here.
        forms: Forms of the rows; None if all are plain.
        progress: Called with (rows done, all rows) after every batch.

    Returns:
        One answer per prompt, in the given order.
    """
    encoder_decoder = is_encoder_decoder(model)
    forms = [PLAIN] * len(prompts) if forms is None else forms
    rows = encode_prompts(prompts, tokenizer, encoder_decoder=encoder_decoder, encoding=encoding, forms=forms)
    leads = {form: _lead(form, tokenizer) for form in set(forms)}
    pad, inner = pad_token_id(tokenizer), without_peft(model)
    settings = _greedy(inner, tokenizer, answer_limit(encoding, config), set(forms))
    padded, readable = can_be_padded(model, tokenizer), True
    wanted = [] if expected is None else _right_answers(expected, prompts, model, tokenizer, forms, settings)
    answers, done = [Answer(text="")] * len(rows), 0
    with evaluating(model):
        for batch in batches_by_length(rows, config.batch_size, padded=padded, most_tokens=tokens_at_once(model)):
            members, right = [rows[index] for index in batch], [wanted[index] for index in batch] if wanted else None
            reading = _read(members, model, pad, settings) if readable else None
            readable = reading is not None
            before = None if reading is None or right is None else reading.branch()
            if reading is None:
                decoded = answer_with_generate(members, model, pad, settings, measured=right is not None)
            else:
                decoded = answer(reading, settings, measured=right is not None)
            scores = None if right is None else _of_right_answers(members, right, decoded, model, pad, before)
            texts = tokenizer.batch_decode(decoded.written, skip_special_tokens=True)
            for place, (index, text) in enumerate(zip(batch, texts, strict=True)):
                facts: Any = {}
                if right is not None and scores is not None:
                    facts = {"log_probability": sum(decoded.scores[place]), "nll": -scores[place] / len(right[place])}
                answers[index] = Answer(text=text.strip().removeprefix(leads[forms[index]]).strip(), **facts)
            done += len(batch)
            if progress is not None:
                progress(done, len(rows))
    return answers


def _right_answers(
    expected: Sequence[str],
    prompts: Sequence[str],
    model: Module,
    tokenizer: PreTrainedTokenizerBase,
    forms: Sequence[Form],
    settings: GenerationConfig,
) -> list[list[int]]:
    """Encode the right answers; of a longer one the tokens that an answer may have, because a model may end there."""
    encoder_decoder = is_encoder_decoder(model)
    ids = encode_completions(expected, tokenizer, prompts=prompts, encoder_decoder=encoder_decoder, forms=forms)
    return [each[: settings.max_new_tokens] for each in ids]


def _of_right_answers(
    rows: list[list[int]],
    right: list[list[int]],
    decoded: Decoded,
    model: Module,
    pad: int,
    before: Reading | None,
) -> list[float]:
    """Return the log-likelihood of each right answer.

    Args:
        rows: The prompts of a batch.
        right: The right answers.
        decoded: The model's answers.
        model: The model.
        pad: The padding id.
        before: The model's state after the prompts; None if it has no usable cache.
    """
    scores = [sum(of) for of in decoded.scores]
    others = [place for place, (one, other) in enumerate(zip(right, decoded.ids, strict=True)) if one != other]
    if others:
        if before is not None and len(others) < len(rows):
            before.keep(torch.tensor(others, device=before.logits.device))
        prompts, answers = ([each[place] for place in others] for each in (rows, right))
        for place, score in zip(others, log_likelihoods(model, prompts, answers, pad, before), strict=True):
            scores[place] = score
    return scores


def _read(rows: list[list[int]], model: Module, pad: int, settings: GenerationConfig) -> Reading | None:
    """Run prompts through the model. None if its cache or start of an answer is unusual, so `generate` must be used."""
    if not is_encoder_decoder(model):
        return read_by_decoder(model, rows, pad)
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None or start != settings.decoder_start_token_id:
        return None
    return read_start_token(model, *encode(model, rows, pad))


def _lead(form: Form, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the lead of a row as it appears in a decoded answer, without special tokens."""
    ids = text_ids([form.lead], tokenizer, control=form.chat)[0]
    return tokenizer.decode(ids, skip_special_tokens=True).strip()  # pyright: ignore[reportAttributeAccessIssue]


def _greedy(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, forms: Collection[Form]
) -> GenerationConfig:
    """Return settings of plain greedy decoding. Of the model's stored settings only the special tokens are used."""
    stored = model.generation_config
    own: Any = stored.eos_token_id  # None, an id, or several
    end: Any = tokenizer.eos_token_id
    written = text_ids([form.end for form in forms if form.end], tokenizer, control=True)
    ends = {end, *(own if isinstance(own, list | tuple) else [own]), *(ids[-1] for ids in written)} - {None}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=pad_token_id(tokenizer),
        eos_token_id=sorted(ends) or None,
        bos_token_id=stored.bos_token_id,
        decoder_start_token_id=stored.decoder_start_token_id,
        forced_bos_token_id=stored.forced_bos_token_id,
    )
