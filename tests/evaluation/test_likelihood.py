"""The likelihood of right answers and of the model's own, against a pass over each row alone; answers do not change."""

import math

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy

from gorp.data import Encoding, Task, encode
from gorp.evaluation import EvalConfig, generate_answers, likelihood, score_task
from gorp.evaluation.generate import answer_prompts
from tests.evaluation.test_rank_families import build as build_family
from tests.evaluation.test_reading import BUILDS, PROMPTS, ids_by_hand, rows_of
from tests.runs import tiny
from tests.runs import tokenizer as tokenizer_of


EXPECTED = ["very negative", "A", "Is the light red or blue?", "True", "neutral, and the market opened late", "False"]
ENCODING, CONFIG = Encoding(), EvalConfig(max_new_tokens=12, batch_size=4)


def nll_by_hand(model, tokenizer, prompt, expected, limit=12):
    """Slow reference: the training loss of one row, over at most `limit` tokens of its answer."""
    encoder_decoder = model.config.is_encoder_decoder
    row = Dataset.from_dict({"prompt": [prompt], "completion": [expected]})
    ids = encode(row, tokenizer, encoder_decoder=encoder_decoder, encoding=ENCODING)[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids["input_ids"]]), labels=torch.tensor([ids["labels"]])).logits[0]
    targets = torch.tensor(ids["labels"])
    if not encoder_decoder:
        logits, targets = logits[:-1], targets[1:]
    real = targets != -100
    return float(cross_entropy(logits[real][:limit], targets[real][:limit]))


def own_by_hand(model, tokenizer, prompt, steps=12):
    """Slow reference: log p of the model's own answer, one pass over all tokens so far for every token."""
    row = rows_of(tokenizer, [prompt], encoder_decoder=model.config.is_encoder_decoder)[0]
    new, total = [], 0.0
    while len(new) < steps and tokenizer.eos_token_id not in new:
        if model.config.is_encoder_decoder:
            asked = {"input_ids": [row], "decoder_input_ids": [[model.config.decoder_start_token_id, *new]]}
        else:
            asked = {"input_ids": [row + new]}
        with torch.no_grad():
            logits = model(**{name: torch.tensor(ids) for name, ids in asked.items()}).logits[0, -1]
        new.append(int(logits.argmax()))
        total += float(logits.log_softmax(-1).max())
    assert new == ids_by_hand(model, row, steps, [tokenizer.eos_token_id])
    return total


def check(model, tokenizer, expected=EXPECTED, rel=1e-9):
    found = answer_prompts(model, tokenizer, PROMPTS, expected, encoding=ENCODING, config=CONFIG)
    plain = generate_answers(model, tokenizer, PROMPTS, encoding=ENCODING, config=CONFIG)
    assert [answer.text for answer in found] == plain
    for prompt, right, answer in zip(PROMPTS, expected, found, strict=True):
        assert answer.nll == pytest.approx(nll_by_hand(model, tokenizer, prompt, right), rel=rel)
        assert answer.log_probability == pytest.approx(own_by_hand(model, tokenizer, prompt), rel=rel)
    return found


@pytest.mark.parametrize("name", BUILDS)
def test_both_numbers_equal_those_of_a_pass_over_each_row_alone(name):
    model, tokenizer = BUILDS[name]()
    check(model, tokenizer, rel=1e-9 if model.dtype == torch.float64 else 1e-4)


@pytest.mark.filterwarnings("ignore")  # some families warn that a faster kernel is not installed
@pytest.mark.parametrize("family", ["gemma3_text", "lfm2", "mamba"])
def test_the_same_for_windows_convolutions_and_recurrent_states(family):
    model, tokenizer = build_family(family)
    check(model, tokenizer, rel=1e-3)


def test_a_decoder_that_takes_one_token_behind_its_cache_is_run_without_it():
    # ProphetNet's logits depend on the number of tokens that follow, so the answers have the same length.
    model, tokenizer = build_family("prophetnet")
    expected = ["very negative", "True"] * 3
    found = answer_prompts(model, tokenizer, PROMPTS, expected, encoding=ENCODING, config=CONFIG)
    for prompt, right, answer in zip(PROMPTS, expected, found, strict=True):
        assert answer.nll == pytest.approx(nll_by_hand(model, tokenizer, prompt, right), rel=1e-3)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_row_that_is_answered_right_needs_no_second_pass_and_its_number_is_the_same(name, monkeypatch):
    model, tokenizer = BUILDS[name]()
    expected = list(EXPECTED)
    texts = generate_answers(model, tokenizer, PROMPTS, encoding=ENCODING, config=EvalConfig(max_new_tokens=3))
    for index in (0, 3):
        expected[index] = texts[index]
    asked = {"encoding": ENCODING, "config": EvalConfig(max_new_tokens=3, batch_size=6)}
    wrong, original = [], likelihood.log_likelihoods
    monkeypatch.setattr(
        "gorp.evaluation.generate.log_likelihoods", lambda m, rows, *a: wrong.append(len(rows)) or original(m, rows, *a)
    )
    found = answer_prompts(model, tokenizer, PROMPTS, expected, **asked)
    reused = 6 - sum(wrong)
    assert reused >= 1, "an answer of the model must be read as the same tokens, or the test proves nothing"
    for prompt, right, answer in zip(PROMPTS, expected, found, strict=True):
        assert answer.nll == pytest.approx(nll_by_hand(model, tokenizer, prompt, right, 3), rel=1e-9)


def test_a_long_answer_in_pieces_is_the_same(monkeypatch):
    model, tokenizer = BUILDS["llama"]()
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 5)
    check(model, tokenizer)


def task(metric, labels=None, expected=EXPECTED):
    rows = Dataset.from_dict({"prompt": PROMPTS, "completion": expected})
    return Task(name="t", train=None, dev=None, eval=rows, labels=labels, metric=metric, source="test")


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_ranked_row_has_the_share_of_its_label_and_the_loss_of_the_right_one(name):
    model, tokenizer = BUILDS[name]()
    labels = ("True", "False", "very negative")
    expected = ["True", "False", "very negative"] * 2
    asked = {"encoding": ENCODING, "config": CONFIG}
    plain = score_task(model, tokenizer, task("label_ranking", labels, expected), **asked)
    found = score_task(model, tokenizer, task("label_ranking", labels, expected), **asked, likelihood=True)
    assert (plain.score, plain.rows) == (found.score, found.rows)
    for prompt, before, sample in zip(PROMPTS, plain.samples, found.samples, strict=True):
        assert {key: sample[key] for key in before} == before and set(sample) - set(before) == {"nll", "probability"}
        assert sample["nll"] == pytest.approx(nll_by_hand(model, tokenizer, prompt, sample["expected"], 99), abs=1e-6)
        ids = [len(tokenizer(label, add_special_tokens=False)["input_ids"]) + 1 for label in labels]
        assert min(ids) > 1
        scores = [
            -nll_by_hand(model, tokenizer, prompt, label, 99) * _length(tokenizer, model, label) for label in labels
        ]
        shares = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
        assert sample["probability"] == pytest.approx(max(shares), abs=1e-6)
        assert sample["answer"] == labels[shares.index(max(shares))]


def _length(tokenizer, model, label):
    row = Dataset.from_dict({"prompt": [PROMPTS[0]], "completion": [label]})
    ids = encode(row, tokenizer, encoder_decoder=model.config.is_encoder_decoder, encoding=ENCODING)[0]["labels"]
    return sum(token != -100 for token in ids)


def test_a_generated_row_has_both_numbers_and_a_broken_model_has_none():
    model, tokenizer = BUILDS["llama"]()
    asked = {"encoding": ENCODING, "config": CONFIG, "likelihood": True}
    for prompt, sample in zip(PROMPTS, score_task(model, tokenizer, task("exact_match"), **asked).samples, strict=True):
        assert sample["nll"] == pytest.approx(nll_by_hand(model, tokenizer, prompt, sample["expected"]), abs=1e-6)
        assert sample["probability"] == pytest.approx(math.exp(own_by_hand(model, tokenizer, prompt)), abs=1e-6)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    broken = score_task(model, tokenizer, task("exact_match"), **asked).samples
    assert {(sample["nll"], sample["probability"]) for sample in broken} == {(None, None)}


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_last_bits_do_not_depend_on_whether_the_weights_were_trained_just_before(family):
    """After training all weights are frozen, in a new process none is; torch has a kernel for each."""
    model, tokenizer = tiny(family), tokenizer_of(family)
    prompts = [f"The light {100 + i} is {('green', 'red', 'blue')[i % 3]}. Answer:" for i in range(9)]
    found = []
    for trainable in (True, False):
        model.requires_grad_(trainable)
        asked = {"encoding": Encoding(), "config": EvalConfig(max_new_tokens=4)}
        found.append(answer_prompts(model, tokenizer, prompts, ["good"] * 9, **asked))
        assert all(parameter.requires_grad is trainable for parameter in model.parameters())
    assert found[0] == found[1]
