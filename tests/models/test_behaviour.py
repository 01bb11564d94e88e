"""What a model does with padding and with later tokens is found out on the model itself."""

import pytest
import torch

from gorp.data import Encoding
from gorp.evaluation import EvalConfig, can_be_padded, generate_answers, rank_labels
from gorp.evaluation.batches import batches_by_length
from gorp.models import behaviour
from gorp.models.behaviour import minds_padding, ordinary_tokens, sees_later_tokens
from tests.models_small import tiny_gpt2, tiny_llama, tiny_mamba, tiny_moe, tiny_rwkv, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


PROMPTS = [
    "The light is",
    "The light is green. It is",
    "One",
    "The World reads of Sports and Business. The light is red",
]


@pytest.mark.parametrize("build", [tiny_llama, tiny_mamba, tiny_moe, tiny_gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_neither_sees_later_tokens_nor_minds_padding(build, dtype):
    tokenizer = llama_tokenizer()
    model, tokens = build(tokenizer).to(dtype), ordinary_tokens(tokenizer)
    stored, state = model.generation_config, torch.get_rng_state()
    assert not sees_later_tokens(model, tokens) and not minds_padding(model, tokens, tokenizer.pad_token_id)
    assert model.generation_config is stored and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_bfloat16_rounding_is_not_taken_for_padding(dtype, monkeypatch):
    """There a row alone and in a batch may differ by a tenth of a standard deviation, as in SmolLM2."""
    exact = behaviour._next_logits

    def rounded(model, rows, mask):
        logits = exact(model, rows, mask)
        return logits + 0.2 * logits.std() * (len(rows) > 1)

    monkeypatch.setattr(behaviour, "_next_logits", rounded)
    tokenizer = llama_tokenizer()
    minded = minds_padding(tiny_llama(tokenizer).to(dtype), ordinary_tokens(tokenizer), tokenizer.pad_token_id)
    assert minded == (dtype == torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_reads_its_padding_is_recognised(dtype):
    tokenizer = llama_tokenizer()
    assert minds_padding(tiny_rwkv(tokenizer).to(dtype), ordinary_tokens(tokenizer), tokenizer.pad_token_id)


def test_an_encoder_decoder_does_not_mind_padding():
    tokenizer = t5_tokenizer()
    assert not minds_padding(tiny_t5(tokenizer), ordinary_tokens(tokenizer), tokenizer.pad_token_id)


def test_ordinary_tokens_have_no_special_meaning():
    tokenizer = llama_tokenizer()
    tokens = ordinary_tokens(tokenizer)
    assert len(set(tokens)) == 16 and not set(tokens) & set(tokenizer.all_special_ids)


def test_batches_without_padding_hold_rows_of_one_length():
    rows = [[0] * length for length in (3, 5, 3, 3, 5, 1)]
    assert list(batches_by_length(rows, 2, padded=False)) == [[1, 4], [0, 2], [3], [5]]


@pytest.mark.parametrize("batch_size", [2, 4])
def test_a_model_that_reads_its_padding_is_scored_as_its_rows_are_alone(batch_size):
    tokenizer = llama_tokenizer()
    model = tiny_rwkv(tokenizer)
    assert not sees_later_tokens(model, ordinary_tokens(tokenizer)) and not can_be_padded(model, tokenizer)
    encoding = Encoding(max_prompt_tokens=48)

    def score(prompts, size):
        config = EvalConfig(batch_size=size, max_new_tokens=4)
        answers = generate_answers(model, tokenizer, prompts, encoding=encoding, config=config)
        return answers, rank_labels(model, tokenizer, prompts, ["true", "false"], encoding=encoding, config=config)

    answers, ranked = score(PROMPTS, batch_size)
    for prompt, answer, scores in zip(PROMPTS, answers, ranked, strict=True):
        ((alone,), (scores_alone,)) = score([prompt], 1)
        assert answer == alone
        assert scores == pytest.approx(scores_alone, abs=1e-4)
