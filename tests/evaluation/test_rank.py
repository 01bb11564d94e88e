import math
from unittest.mock import patch

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from gorp.data import Encoding, encode
from gorp.errors import DataError, ModelError
from gorp.evaluation import EvalConfig, rank_labels
from tests.models_small import tiny_llama, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


ENCODING = Encoding()
LABELS = ["very negative", "negative", "neutral", "True", "A"]
PROMPTS = [
    "Is the light red?",
    "A",
    "What is the topic of the following paragraph? Choose one from the option.\nOption: World, Sports\nAnswer:",
    "Is the statement true? ",  # ends in a blank: a decoder reads the labels without one
    "The harbour was quiet",
]


def t5():
    tokenizer = t5_tokenizer()
    return tiny_t5(tokenizer, tie_word_embeddings=True).double(), tokenizer


def llama():
    tokenizer = llama_tokenizer()
    return tiny_llama(tokenizer, initializer_range=0.3).double(), tokenizer


def rank(model, tokenizer, prompts=PROMPTS, labels=LABELS, batch_size=3):
    return rank_labels(model, tokenizer, prompts, labels, encoding=ENCODING, config=EvalConfig(batch_size=batch_size))


def rank_one_by_one(model, tokenizer, prompts, labels):
    """Slow reference: minus the training loss of each prompt and label, summed over the answer's tokens."""
    encoder_decoder = model.config.is_encoder_decoder
    ranked = []
    for prompt in prompts:
        rows = Dataset.from_dict({"prompt": [prompt] * len(labels), "completion": labels})
        scores = {}
        for label, row in zip(
            labels, encode(rows, tokenizer, encoder_decoder=encoder_decoder, encoding=ENCODING), strict=True
        ):
            ids, targets = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            with torch.no_grad():
                logits = model(input_ids=ids, labels=targets).logits
            if not encoder_decoder:
                logits, targets = logits[:, :-1], targets[:, 1:]
            scores[label] = -float(cross_entropy(logits[0], targets[0], reduction="sum"))
        ranked.append(scores)
    return ranked


@pytest.mark.parametrize("build", [t5, llama])
class TestBothFamilies:
    def test_a_score_is_minus_the_training_loss_of_the_row(self, build):
        model, tokenizer = build()
        expected = rank_one_by_one(model, tokenizer, PROMPTS, LABELS)
        for scores, wanted in zip(rank(model, tokenizer), expected, strict=True):
            assert scores == pytest.approx(wanted, rel=1e-10)

    def test_the_same_holds_in_float32(self, build):
        model, tokenizer = build()
        expected = rank_one_by_one(model, tokenizer, PROMPTS, LABELS)
        for scores, wanted in zip(rank(model.float(), tokenizer), expected, strict=True):
            assert scores == pytest.approx(wanted, rel=1e-4)

    def test_every_label_has_a_score_in_the_order_given(self, build):
        assert [list(scores) for scores in rank(*build())] == [LABELS] * len(PROMPTS)

    def test_a_score_does_not_depend_on_the_other_labels_or_their_order(self, build):
        model, tokenizer = build()
        whole = rank(model, tokenizer)
        for label in LABELS:
            alone = rank(model, tokenizer, labels=[label])
            assert [scores[label] for scores in alone] == pytest.approx([scores[label] for scores in whole], rel=1e-10)
        assert [list(scores) for scores in rank(model, tokenizer, labels=LABELS[::-1])] == [LABELS[::-1]] * 5

    def test_the_prompt_is_processed_once_for_all_labels(self, build):
        model, tokenizer = build()
        reads = []
        first_layer = model.encoder.block[0] if model.config.is_encoder_decoder else model.model.layers[0]
        first_layer.register_forward_hook(lambda _module, arguments, _output: reads.append(arguments[0].shape[1]))
        rank(model, tokenizer, prompts=[PROMPTS[2]])
        longest_label = 12
        assert sum(1 for tokens in reads if tokens > longest_label) == 1

    def test_is_the_same_in_train_mode_with_dropout(self, build):
        model, tokenizer = build()
        expected = rank(model, tokenizer)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        model.train()
        assert rank(model, tokenizer) == expected
        assert model.training

    def test_the_answers_of_one_token_are_probabilities(self, build):
        """Σ p(answer, eos) over all answers of one token is the probability of such an answer: at most 1."""
        model, tokenizer = build()
        labels = [chr(code) for code in range(ord("a"), ord("z") + 1)]
        for scores in rank(model, tokenizer, labels=labels):
            assert 0.0 < math.fsum(math.exp(score) for score in scores.values()) <= 1.0

    def test_no_labels_and_duplicate_labels_are_refused(self, build):
        for labels in ([], ["A", "B", "A"]):
            with pytest.raises(DataError, match="at least one label, and no label twice"):
                rank(*build(), labels=labels)


@settings(max_examples=15, deadline=None)
@given(
    prompts=st.lists(st.text("abc .?\n", min_size=1, max_size=30), min_size=1, max_size=6),
    batch_size=st.integers(1, 7),
)
@pytest.mark.parametrize("build", [t5, llama])
def test_the_batch_size_does_not_change_a_score(build, prompts, batch_size):
    model, tokenizer = build()
    batched = rank(model, tokenizer, prompts, ["True", "neutral"], batch_size)
    for prompt, scores in zip(prompts, batched, strict=True):
        assert scores == pytest.approx(rank(model, tokenizer, [prompt], ["True", "neutral"], 1)[0], rel=1e-9)


def test_a_longer_label_ranks_first_if_it_is_more_likely():
    """The label that was trained most ranks first, although it has more tokens than the others."""
    tokenizer = llama_tokenizer()
    model = tiny_llama(tokenizer, initializer_range=0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rows = Dataset.from_dict({"prompt": ["Is the light red?"], "completion": ["very negative"]})
    row = encode(rows, tokenizer, encoder_decoder=False, encoding=ENCODING)[0]
    for _ in range(60):
        model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    scores = rank(model, tokenizer, ["Is the light red?"])[0]
    assert max(scores, key=scores.__getitem__) == "very negative"
    assert math.exp(scores["very negative"]) > 0.5


@pytest.mark.parametrize("build", [t5, llama])
def test_without_a_cache_the_prompt_is_processed_again_for_every_label(build):
    model, tokenizer = build()
    expected = rank_one_by_one(model, tokenizer, PROMPTS, LABELS)
    whole = type(model).forward

    def forward(self, **arguments):
        output = whole(self, **arguments)
        output.past_key_values = ((torch.zeros(1), torch.zeros(1)),)
        return output

    with patch.object(type(model), "forward", forward):
        for scores, wanted in zip(rank(model, tokenizer), expected, strict=True):
            assert scores == pytest.approx(wanted, rel=1e-10)


def test_a_decoder_without_a_start_token_is_refused():
    model, tokenizer = t5()
    model.config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="decoder_start_token_id is not set"):
        rank(model, tokenizer)
