"""Generate greedy answers in free text, in batches."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import GenerationConfig, PreTrainedTokenizerBase

from gorp.data import PLAIN, Encoding, Form, encode_prompts
from gorp.data.tokens import text_ids
from gorp.evaluation.batches import (
    EvalConfig,
    Progress,
    answer_limit,
    batches_by_length,
    can_be_padded,
    device_of,
    evaluating,
    is_encoder_decoder,
    pad_rows,
    pad_token_id,
    tokens_at_once,
    without_peft,
)
from gorp.evaluation.reading import Reading, encode, read_by_decoder, read_start_token


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
    """Generate the model's answer to every prompt, with the most probable token at each step.

        yₜ = argmax p(· | prompt, y₁ … yₜ₋₁)    until an end token or `answer_limit(encoding, config)` tokens

    End tokens are the tokenizer's eos, those stored with the model, and the token with which a chat template ends an
    answer. Padding is masked, so a row gets the same answer in a batch as alone. Sampling settings and penalties stored
    with the model are not used. The random state and the mode of every submodule do not change.

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
    encoder_decoder = is_encoder_decoder(model)
    forms = [PLAIN] * len(prompts) if forms is None else forms
    rows = encode_prompts(prompts, tokenizer, encoder_decoder=encoder_decoder, encoding=encoding, forms=forms)
    leads = {form: _lead(form, tokenizer) for form in set(forms)}
    pad, inner = pad_token_id(tokenizer), without_peft(model)
    settings = _greedy(inner, tokenizer, answer_limit(encoding, config), set(forms))
    padded, readable = can_be_padded(model, tokenizer), True
    answers, done = [""] * len(rows), 0
    with evaluating(model):
        for batch in batches_by_length(rows, config.batch_size, padded=padded, most_tokens=tokens_at_once(model)):
            members = [rows[index] for index in batch]
            reading = _read(members, model, pad, settings) if readable else None
            readable = reading is not None
            new = (
                _answer_with_generate(members, model, pad, settings) if reading is None else _answer(reading, settings)
            )
            for index, answer in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                answers[index] = answer.strip().removeprefix(leads[forms[index]]).strip()
            done += len(batch)
            if progress is not None:
                progress(done, len(rows))
    return answers


def _read(rows: list[list[int]], model: Module, pad: int, settings: GenerationConfig) -> Reading | None:
    """Run prompts through the model. None if its cache or start of an answer is unusual, so `generate` must be used."""
    if not is_encoder_decoder(model):
        return read_by_decoder(model, rows, pad)
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None or start != settings.decoder_start_token_id:
        return None
    return read_start_token(model, *encode(model, rows, pad))


def _answer(reading: Reading, settings: GenerationConfig) -> list[list[int]]:
    """Return the tokens of every row's answer, with its end token. Finished rows are removed from the batch."""
    answers: list[list[int]] = [[] for _ in reading.logits]
    unfinished = list(range(len(answers)))
    tokens = reading.logits.argmax(dim=-1)  # B
    if reading.encoded is not None and settings.forced_bos_token_id is not None:
        tokens = torch.full_like(tokens, settings.forced_bos_token_id)
    ends = torch.tensor(settings.eos_token_id or [], dtype=tokens.dtype, device=tokens.device)
    while True:
        for row, token in zip(unfinished, tokens.tolist(), strict=True):
            answers[row].append(token)
        kept = torch.isin(tokens, ends, invert=True).nonzero()[:, 0]
        if not len(kept) or len(answers[unfinished[0]]) == settings.max_new_tokens:
            return answers
        if len(kept) < len(unfinished):
            reading.keep(kept)
            unfinished, tokens = [unfinished[position] for position in kept.tolist()], tokens[kept]
        tokens = reading.advance(tokens[:, None])[:, -1].argmax(dim=-1)


def _answer_with_generate(
    rows: list[list[int]], model: Module, pad: int, settings: GenerationConfig
) -> list[list[int]]:
    """Answer with transformers' `generate`, for a model with its own kind of cache, such as a recurrent model."""
    generate: Any = model.generate
    encoder_decoder = is_encoder_decoder(model)
    input_ids, attention_mask = (
        part.to(device_of(model)) for part in pad_rows(rows, pad, encoder_decoder=encoder_decoder)
    )
    with _replaced_settings(without_peft(model), settings):
        output: Tensor = generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=settings)
    # The output of a decoder-only model begins with the prompt.
    return (output if encoder_decoder else output[:, input_ids.shape[1] :]).tolist()


@contextmanager
def _replaced_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Replace the model's stored settings inside the context; `generate` would take every unset value from them."""
    stored = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = stored


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
