"""The loss of running text, against one plain pass over each text alone, and a value computed by hand."""

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import BartConfig, BartForConditionalGeneration

from gorp.evaluation import text_loss
from gorp.evaluation.calibration import paired_difference
from gorp.evaluation.text_loss import LONGEST, predicted_parts, text_losses, tokens_read
from tests.evaluation.test_reading import BUILDS
from tests.tokenizers_small import t5_tokenizer


TEXTS = [
    "The market opened late.",
    "Green light, red light, blue light: is it early or late in the world of sports?",
    "World",
    "Sports and business, and the early market. " * 4,
]


def by_hand(model, tokenizer, text):
    """Slow reference: the model's own loss on one text, or on its second half after its first."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if model.config.is_encoder_decoder:
        half = -(-len(ids) // 2)
        given = [*ids[:half], tokenizer.eos_token_id]
        with torch.no_grad():
            return float(model(input_ids=torch.tensor([given]), labels=torch.tensor([ids[half:]])).loss)
    whole = torch.tensor([tokenizer(text)["input_ids"]])
    assert whole.shape[1] - len(ids) in (0, 1)  # a bos at most
    with torch.no_grad():
        logits = model(input_ids=whole).logits[0]
    return float(cross_entropy(logits[:-1], whole[0, 1:]))


@pytest.mark.parametrize("name", BUILDS)
def test_each_text_has_the_loss_of_a_plain_pass_over_it_alone(name, monkeypatch):
    model, tokenizer = BUILDS[name]()
    found = text_losses(model, tokenizer, TEXTS)
    rel = 1e-9 if model.dtype == torch.float64 else 1e-4
    for each in found:
        assert each.nll == pytest.approx(by_hand(model, tokenizer, TEXTS[each.index]), rel=rel)
    monkeypatch.setattr(text_loss, "TOKENS_AT_ONCE", 1)  # every text is a batch of its own, without padding
    alone = text_losses(model, tokenizer, TEXTS)
    assert [(a.index, a.tokens) for a in alone] == [(a.index, a.tokens) for a in found]
    assert [a.nll for a in alone] == pytest.approx([a.nll for a in found], rel=rel)


def test_a_model_that_finds_all_tokens_equally_likely_loses_the_logarithm_of_their_number():
    model, tokenizer = BUILDS["llama"]()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    for each in text_losses(model, tokenizer, TEXTS):
        assert each.nll == pytest.approx(math.log(model.config.vocab_size))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_of_a_long_text_the_first_tokens_count_and_a_text_of_one_token_has_no_loss(name):
    model, tokenizer = BUILDS[name]()
    encoder_decoder = model.config.is_encoder_decoder
    parts = predicted_parts(TEXTS, tokenizer, encoder_decoder=encoder_decoder, longest=6)
    first = tokenizer(TEXTS[1], add_special_tokens=False)["input_ids"][:6]
    added = len(tokenizer("a")["input_ids"]) - len(tokenizer("a", add_special_tokens=False)["input_ids"])
    given, predicted = parts[1]
    assert len(given) - added + len(predicted) == 6 and predicted == first[-len(predicted) :]
    assert len(predicted) == (3 if encoder_decoder else 6 - (not added))
    single = predicted_parts(TEXTS, tokenizer, encoder_decoder=encoder_decoder, longest=1)
    assert len(single) == (0 if encoder_decoder or not added else len(TEXTS))


def test_of_a_model_with_few_positions_each_side_of_a_text_is_as_long_as_they_allow():
    tokenizer = t5_tokenizer()
    of_sides = {"ffn_dim": 16, "layers": 1, "attention_heads": 2}
    settings: dict[str, Any] = {f"{side}_{key}": of for side in ("encoder", "decoder") for key, of in of_sides.items()}
    settings |= {"vocab_size": len(tokenizer), "d_model": 16, "max_position_embeddings": 12}
    config = BartConfig(**settings, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    config.decoder_start_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    model = BartForConditionalGeneration(config).eval()
    assert tokens_read(model, tokenizer) == 22  # the encoder reads 11 and the end, the decoder predicts 11
    ids = tokenizer(TEXTS[3], add_special_tokens=False)["input_ids"]
    given = torch.tensor([[*ids[:11], tokenizer.eos_token_id]])
    with torch.no_grad():
        loss = float(model(input_ids=given, labels=torch.tensor([ids[11:22]])).loss)
    (found,) = text_losses(model, tokenizer, TEXTS[3:])
    assert found.tokens == 11 and found.nll == pytest.approx(loss, rel=1e-4)
    assert tokens_read(BUILDS["t5"]()[0], tokenizer) == LONGEST  # relative positions have no limit


def test_names_of_special_tokens_in_a_text_are_text():
    _, tokenizer = BUILDS["llama"]()
    (given, predicted), *_ = predicted_parts(["a</s>b"], tokenizer, encoder_decoder=False).values()
    assert tokenizer.eos_token_id not in [*given[1:], *predicted]


def test_a_weighted_difference_is_that_of_all_tokens_and_its_interval_is_exact_for_equal_rows():
    old, new, tokens = [1.0, 2.0], [1.5, 2.0], [30, 10]
    mean, (low, high) = paired_difference(old, new, weights=tokens)
    assert mean == pytest.approx(0.5 * 30 / 40)  # (30 · 0.5 + 10 · 0) / 40
    assert (low, high) == (pytest.approx(0.0), pytest.approx(0.5))  # both draws of the same row are likely
    assert paired_difference(old, [1.25, 2.25], weights=tokens) == (pytest.approx(0.25), (pytest.approx(0.25),) * 2)
    rows = 40
    equal = paired_difference([0.0] * rows, [float(i % 4) for i in range(rows)], weights=[7] * rows)
    assert equal[0] == pytest.approx(1.5)
    plain = paired_difference([0.0] * rows, [float(i % 4) for i in range(rows)])
    assert equal[1] == pytest.approx(plain[1])
