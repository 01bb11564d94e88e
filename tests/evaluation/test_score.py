from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from gorp.data import Encoding, Task, encode_prompts
from gorp.errors import ConfigError, DataError
from gorp.evaluation import EvalConfig, normalise, score_task
from tests.models_small import tiny_llama
from tests.one_row import encode_completion
from tests.tokenizers_small import llama_tokenizer


ROWS = [("Is the light red?", "True"), ("Is the light blue?", "False"), ("Is it rising?", "True"), ("A film?", "False")]


def dataset(rows):
    return Dataset.from_dict({"prompt": [row[0] for row in rows], "completion": [row[1] for row in rows]})


def task(rows=ROWS, *, metric="exact_match", labels=("True", "False"), dev=None):
    return Task(
        name="light",
        train=dataset(rows[:2]),
        dev=None if dev is None else dataset(dev),
        eval=dataset(rows),
        labels=labels,
        metric=metric,
        source="test",
    )


class Memorised(torch.nn.Module):
    """Fake decoder-only model whose `generate` returns the stored completion of every prompt."""

    device = torch.device("cpu")

    def __init__(self, rows, tokenizer):
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.generation_config = GenerationConfig()
        self.pad = tokenizer.pad_token_id
        prompts = encode_prompts([row[0] for row in rows], tokenizer, encoder_decoder=False, encoding=Encoding())
        self.answers = {
            tuple(prompt): encode_completion(row[1], tokenizer, prompt=row[0], encoder_decoder=False)
            for prompt, row in zip(prompts, rows, strict=True)
        }

    def forward(self, **_inputs):
        return SimpleNamespace()  # no cache, so that `generate` is used

    def generate(self, *, input_ids, attention_mask, generation_config):
        answers = [
            self.answers[tuple(ids[mask.bool()].tolist())] for ids, mask in zip(input_ids, attention_mask, strict=True)
        ]
        longest = max(map(len, answers))
        padded = torch.tensor([answer + [self.pad] * (longest - len(answer)) for answer in answers])
        return torch.cat([input_ids, padded], dim=1)


def score(model, tokenizer, of, **settings):
    split = settings.pop("split", "eval")
    return score_task(model, tokenizer, of, split=split, encoding=Encoding(), config=EvalConfig(**settings))


class TestNormalise:
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("  Very  Positive.\n", "very positive"),
            ("Sci/Tech", "scitech"),
            ("A", "a"),
            ("the end", "the end"),
            ("Mean of Transportation!", "mean of transportation"),
            ("...", ""),
            ("Ärger, ça va", "ärger ça va"),
        ],
    )
    def test_normalise_gives_the_hand_written_values(self, text, wanted):
        assert normalise(text) == wanted

    @given(st.text())
    def test_normalise_is_idempotent(self, text):
        assert normalise(normalise(text)) == normalise(text)

    @given(st.text("abC dE"), st.text(" \t.,!"))
    def test_spaces_and_punctuation_around_an_answer_are_ignored(self, text, around):
        assert normalise(around + text + around) == normalise(text)


class TestExactMatch:
    def test_a_model_that_memorised_everything_scores_100(self):
        tokenizer = llama_tokenizer()
        result = score(Memorised(ROWS, tokenizer), tokenizer, task(), batch_size=3)
        assert (result.task, result.metric, result.score, result.rows) == ("light", "exact_match", 100.0, 4)
        assert result.samples[1] == {
            "index": 1,
            "prompt": "Is the light blue?",
            "expected": "False",
            "answer": "False",
            "correct": True,
        }

    def test_three_of_four_is_75(self):
        tokenizer = llama_tokenizer()
        known = [*ROWS[:3], ("A film?", "very negative")]
        result = score(Memorised(known, tokenizer), tokenizer, task())
        assert result.score == 75.0
        assert [sample["correct"] for sample in result.samples] == [True, True, True, False]
        assert result.samples[3]["answer"] == "very negative"

    def test_case_and_punctuation_are_ignored(self):
        tokenizer = llama_tokenizer()
        known = [(prompt, f"{answer.upper()}.") for prompt, answer in ROWS]
        assert score(Memorised(known, tokenizer), tokenizer, task()).score == 100.0

    def test_the_dev_and_train_splits_are_scored_on_request(self):
        tokenizer = llama_tokenizer()
        model = Memorised(ROWS, tokenizer)
        of = task(dev=[("A film?", "True")])
        assert score(model, tokenizer, of, split="dev").score == 0.0
        assert score(model, tokenizer, of, split="train").rows == 2

    @pytest.mark.parametrize("answer", [lambda index: index // 25, lambda index: index % 4], ids=["sorted", "in turn"])
    def test_limited_rows_have_the_same_shares_of_answers(self, answer):
        """Rows at even distances would all have one answer if a file is sorted by answer or alternates answers."""
        tokenizer = llama_tokenizer()
        rows = [(f"Is the light red {index}?", f"answer {answer(index)}") for index in range(100)]
        result = score(Memorised(rows, tokenizer), tokenizer, task(rows, labels=None), limit=8)
        assert sorted(sample["expected"] for sample in result.samples) == sorted(2 * [f"answer {i}" for i in range(4)])
        assert score(Memorised(rows, tokenizer), tokenizer, task(rows, labels=None), limit=1000).rows == 100


class TestLabelRanking:
    def test_the_answer_is_the_most_likely_label_in_any_label_order(self):
        tokenizer = llama_tokenizer()
        model = tiny_llama(tokenizer, initializer_range=0.3)
        result = score(model, tokenizer, task(metric="label_ranking"))
        swapped = score(model, tokenizer, task(metric="label_ranking", labels=("False", "True")))
        assert {sample["answer"] for sample in result.samples} <= {"True", "False"}
        assert swapped.samples == result.samples

    def test_a_single_label_is_always_the_answer(self):
        tokenizer = llama_tokenizer()
        rows = [(prompt, "True") for prompt, _ in ROWS]
        result = score(tiny_llama(tokenizer), tokenizer, task(rows, metric="label_ranking", labels=("True",)))
        assert result.score == 100.0

    def test_ranking_and_generation_score_100_on_learned_rows(self):
        """The training loss and the ranking must use the same tokens."""
        tokenizer = llama_tokenizer()
        model = tiny_llama(tokenizer, initializer_range=0.1)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        prompts = encode_prompts([row[0] for row in ROWS], tokenizer, encoder_decoder=False, encoding=Encoding())
        for _ in range(40):
            for (prompt, answer), ids in zip(ROWS, prompts, strict=True):
                labels = encode_completion(answer, tokenizer, prompt=prompt, encoder_decoder=False)
                targets = torch.tensor([[-100] * len(ids) + labels])
                model(input_ids=torch.tensor([ids + labels]), labels=targets).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert score(model, tokenizer, task(metric="label_ranking")).score == 100.0
        assert score(model, tokenizer, task()).score == 100.0

    def test_an_expected_answer_outside_the_labels_names_the_row(self):
        tokenizer = llama_tokenizer()
        of = task([*ROWS, ("A film?", "maybe")], metric="label_ranking")
        with pytest.raises(DataError, match=r"eval row 4: the expected answer `maybe` is not one of"):
            score(None, tokenizer, of)


class TestRefusals:
    def test_an_unknown_split_is_refused(self):
        with pytest.raises(DataError, match=r"got `evl`.*Did you mean `eval`"):
            score(None, llama_tokenizer(), task(), split="evl")

    def test_a_split_that_the_task_does_not_have_is_refused(self):
        with pytest.raises(DataError, match="no `dev` rows"):
            score(None, llama_tokenizer(), task(), split="dev")

    @pytest.mark.parametrize("field", ["batch_size", "max_new_tokens", "limit"])
    def test_numbers_below_one_are_refused(self, field):
        with pytest.raises(ConfigError, match=f"{field} is 0; it must be at least 1"):
            EvalConfig(**{field: 0})
