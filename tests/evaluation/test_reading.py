"""Prompts processed in one batch, with a shared beginning computed once, continue exactly as each does alone."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gorp.data import Encoding, encode_prompts
from gorp.evaluation import EvalConfig, generate_answers, reading
from gorp.evaluation.batches import batches_by_length
from tests.evaluation.test_rank_families import FAMILIES
from tests.evaluation.test_rank_families import build as build_family
from tests.models_small import tiny_gpt2, tiny_llama, tiny_moe, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


BEGINNING = "What is the topic of the following paragraph? Choose one from the option.\n"
PROMPTS = [
    BEGINNING + text
    for text in ("The harbour was quiet", "A", "Is the light red or is it blue?\nAnswer:", "The", "True", "A film")
]
ENCODING = Encoding()


def llama():
    tokenizer = llama_tokenizer()
    return tiny_llama(tokenizer, initializer_range=0.5).double(), tokenizer


def t5():
    tokenizer = t5_tokenizer()
    return tiny_t5(tokenizer, seed=3).double(), tokenizer


def decoder(build):
    tokenizer = llama_tokenizer()
    return build(tokenizer), tokenizer


BUILDS = {"llama": llama, "t5": t5, "gpt2": lambda: decoder(tiny_gpt2), "moe": lambda: decoder(tiny_moe)}


def rows_of(tokenizer, prompts=PROMPTS, *, encoder_decoder=False):
    return encode_prompts(prompts, tokenizer, encoder_decoder=encoder_decoder, encoding=ENCODING)


@torch.no_grad()
def ids_by_hand(model, row, steps, ends):
    """Slow reference: one forward pass over all tokens so far for every token; no cache, no batch, no padding."""
    encoder_decoder, new = model.config.is_encoder_decoder, []
    while len(new) < steps and not (new and new[-1] in ends):
        if encoder_decoder:
            asked = {"input_ids": [row], "decoder_input_ids": [[model.config.decoder_start_token_id, *new]]}
        else:
            asked = {"input_ids": [row + new]}
        logits = model(**{name: torch.tensor(ids) for name, ids in asked.items()}).logits
        new.append(int(logits[0, -1].argmax()))
    return new


def answered_ids(model, tokenizer, prompts=PROMPTS, **settings):
    """Return the tokens that `generate_answers` decodes, in the order of the prompts."""
    rows = rows_of(tokenizer, prompts, encoder_decoder=model.config.is_encoder_decoder)
    decoded = []

    def decode(ids, **_):
        decoded.extend(list(each) for each in ids)
        return [""] * len(ids)

    with patch.object(tokenizer, "batch_decode", decode):
        generate_answers(model, tokenizer, prompts, encoding=ENCODING, config=EvalConfig(**settings))
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    return [decoded[order.index(index)] for index in range(len(rows))]


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_batched_answers_have_the_tokens_of_the_slow_reference(name, batch_size):
    model, tokenizer = BUILDS[name]()
    rows = rows_of(tokenizer, encoder_decoder=model.config.is_encoder_decoder)
    free = [ids_by_hand(model, row, 8, set()) for row in rows]
    # Tokens that some rows write early, some late, and some never, so that rows leave the batch one after the other.
    ends = sorted({free[0][0], free[2][3], free[5][5], tokenizer.eos_token_id})
    model.generation_config.eos_token_id = ends
    expected = [ids_by_hand(model, row, 8, set(ends)) for row in rows]
    assert len({len(ids) for ids in expected}) > 1, "rows must end at different steps for this test"
    assert answered_ids(model, tokenizer, batch_size=batch_size, max_new_tokens=8) == expected


@pytest.mark.filterwarnings("ignore")  # some families warn that a faster kernel is not installed
@pytest.mark.parametrize("family", [*FAMILIES, "switch_transformers"])  # ProphetNet's cache changes its own answers
def test_batched_answers_equal_the_slow_reference_for_every_model_family(family):
    model, tokenizer = build_family(family)
    rows = rows_of(tokenizer, encoder_decoder=model.config.is_encoder_decoder)
    expected = [ids_by_hand(model, row, 4, {tokenizer.eos_token_id}) for row in rows]
    answers = answered_ids(model, tokenizer, batch_size=6, max_new_tokens=4)
    assert [ids[: len(wanted)] for ids, wanted in zip(answers, expected, strict=True)] == expected


class TestASharedBeginning:
    @pytest.mark.parametrize("name", ["llama", "gpt2", "moe"])
    def test_gives_the_same_state_as_processing_whole_rows(self, name):
        model, tokenizer = BUILDS[name]()
        rows, pad = rows_of(tokenizer), tokenizer.pad_token_id
        further = torch.arange(5, 5 + 3 * len(rows)).view(len(rows), 3)
        with torch.no_grad():
            at_once = reading.read_by_decoder(model, rows, pad)
            with patch.object(reading, "MIN_SHARED", 1000):
                separately = reading.read_by_decoder(model, rows, pad)
            torch.testing.assert_close(at_once.logits, separately.logits)
            assert torch.equal(at_once.mask, separately.mask)
            torch.testing.assert_close(at_once.advance(further), separately.advance(further))

    def test_is_computed_once(self):
        model, tokenizer = llama()
        rows, seen = rows_of(tokenizer), []
        model.model.layers[0].register_forward_hook(lambda _module, args, _out: seen.append(tuple(args[0].shape[:2])))
        with torch.no_grad():
            reading.read_by_decoder(model, rows, tokenizer.pad_token_id)
        shared = len(rows_of(tokenizer, [BEGINNING])[0])
        assert all(row[: shared - 2] == rows[0][: shared - 2] for row in rows)
        assert seen[0][0] == 1 and seen[0][1] >= shared - 2
        assert seen[1] == (len(rows), max(map(len, rows)) - seen[0][1])

    def test_may_be_a_whole_row(self):
        model, tokenizer = llama()
        short = rows_of(tokenizer, [BEGINNING])[0]
        rows = [short, [*short, 9, 10], short]
        with torch.no_grad():
            together = reading.read_by_decoder(model, rows, tokenizer.pad_token_id)
            for index, row in enumerate(rows):
                alone = model(input_ids=torch.tensor([row])).logits[0, -1]
                torch.testing.assert_close(together.logits[index], alone)


@pytest.mark.parametrize("build", [llama, t5])
def test_kept_rows_continue_as_they_do_in_the_whole_batch(build):
    model, tokenizer = build()
    encoder_decoder, pad = model.config.is_encoder_decoder, tokenizer.pad_token_id
    rows = rows_of(tokenizer, encoder_decoder=encoder_decoder)

    def read():
        if encoder_decoder:
            return reading.read_start_token(model, *reading.encode(model, rows, pad))
        return reading.read_by_decoder(model, rows, pad)

    tokens, kept = torch.arange(5, 5 + len(rows))[:, None], torch.tensor([0, 3, 4])
    with torch.no_grad():
        whole, part = read(), read()
        part.keep(kept)
        for _ in range(2):
            torch.testing.assert_close(part.advance(tokens[kept]), whole.advance(tokens)[kept])
        whole.rewind(1)
        part.rewind(1)
        torch.testing.assert_close(part.advance(tokens[kept]), whole.advance(tokens)[kept])


@given(
    lengths=st.lists(st.integers(0, 40), max_size=30),
    batch_size=st.integers(1, 8),
    most_tokens=st.none() | st.integers(1, 100),
    padded=st.booleans(),
)
def test_batches_have_every_row_once_and_keep_their_limits(lengths, batch_size, most_tokens, padded):
    rows = [[0] * length for length in lengths]
    batches = list(batches_by_length(rows, batch_size, padded=padded, most_tokens=most_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    for batch in batches:
        sizes = [lengths[index] for index in batch]
        assert len(batch) <= batch_size and (padded or len(set(sizes)) == 1)
        assert most_tokens is None or len(batch) == 1 or len(batch) * max(sizes) <= most_tokens
