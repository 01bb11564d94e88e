"""Greedy answers in free text, in batches."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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
    without_peft,
)


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
    """Let `model` answer every prompt, always taking the most probable next token.

        yₜ = argmax p(· | prompt, y₁ … yₜ₋₁)    until an end token or `answer_limit(encoding, config)` tokens

    End tokens are the tokenizer's eos, those stored with the model, and what a chat template ends an answer with.
    A batch gives the answers that its rows would get alone: padding is masked. Sampling settings and
    penalties stored with the model are not used. The random state and every submodule's mode are left as they were.

    Args:
        model: A transformers model that can `generate`, or a PEFT model around one.
        tokenizer: The model's tokenizer.
        prompts: Rendered text, any number of rows.
        encoding: Limits the tokens of a prompt, as in training.
        config: Batch size and the longest answer; `limit` is not used here.
        forms: Of the rows that the prompts belong to; all plain when None.
        progress: Called with (rows done, rows in all) after every batch.

    Returns:
        One answer per prompt, in the order given: new text only, without special tokens, without the row's lead, blanks
        at both ends removed.
    """
    encoder_decoder = is_encoder_decoder(model)
    forms = [PLAIN] * len(prompts) if forms is None else forms
    rows = encode_prompts(prompts, tokenizer, encoder_decoder=encoder_decoder, encoding=encoding, forms=forms)
    leads = {form: _lead(form, tokenizer) for form in set(forms)}
    pad, inner = pad_token_id(tokenizer), without_peft(model)
    settings = _greedy(inner, tokenizer, answer_limit(encoding, config), set(forms))
    generate: Any = model.generate
    padded = can_be_padded(model, tokenizer)
    answers, done = [""] * len(rows), 0
    with evaluating(model), _stored_aside(inner, settings):
        for batch in batches_by_length(rows, config.batch_size, padded=padded):
            input_ids, attention_mask = pad_rows([rows[index] for index in batch], pad, encoder_decoder=encoder_decoder)
            output: Tensor = generate(
                input_ids=input_ids.to(device_of(model)),
                attention_mask=attention_mask.to(device_of(model)),
                generation_config=settings,
            )
            new = output if encoder_decoder else output[:, input_ids.shape[1] :]  # a decoder alone repeats the prompt
            for index, answer in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                answers[index] = answer.strip().removeprefix(leads[forms[index]]).strip()
            done += len(batch)
            if progress is not None:
                progress(done, len(rows))
    return answers


@contextmanager
def _stored_aside(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Replace the settings stored with the model, which would otherwise fill every gap in ours, until the end."""
    stored = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = stored


def _lead(form: Form, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the lead of a row looks like in an answer, where special tokens are left out."""
    ids = text_ids([form.lead], tokenizer, control=form.chat)[0]
    return tokenizer.decode(ids, skip_special_tokens=True).strip()  # pyright: ignore[reportAttributeAccessIssue]


def _greedy(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, forms: Collection[Form]
) -> GenerationConfig:
    """Plain greedy decoding; of what is stored with the model, only its special tokens count."""
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
