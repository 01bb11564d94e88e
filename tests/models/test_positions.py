"""Where a model's positions end is where it fails, and rows that do not fit are refused before anything runs."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BloomConfig,
    CTRLConfig,
    GPTNeoConfig,
    MptConfig,
    OPTConfig,
    PegasusConfig,
)

from gorp.data import Encoding, Task
from gorp.errors import ConfigError
from gorp.evaluation import EvalConfig, rank_labels
from gorp.models.positions import Positions, positions_of, trained_length
from gorp.rows.lengths import check_budgets, check_lengths
from tests.models_small import tiny_gpt2, tiny_llama, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


SIDES = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
SMALL = {"vocab_size": 40, "d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, **SIDES}
LIMITED = [
    OPTConfig(vocab_size=40, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
              word_embed_proj_dim=16, max_position_embeddings=12),
    GPTNeoConfig(vocab_size=40, hidden_size=16, num_layers=1, attention_types=[[["global"], 1]], num_heads=2,
                 max_position_embeddings=12),
    MptConfig(vocab_size=40, d_model=16, n_layers=1, n_heads=2, max_seq_len=12),
    CTRLConfig(vocab_size=40, n_embd=16, dff=16, n_layer=1, n_head=2, n_positions=12),
    BartConfig(**SMALL, max_position_embeddings=12),
    PegasusConfig(**SMALL, max_position_embeddings=12),
]  # fmt: skip


def reads(model, *, prompt: int, answer: int) -> bool:
    rows = {"input_ids": torch.full((1, prompt), 5)}
    if model.config.is_encoder_decoder:
        rows["decoder_input_ids"] = torch.full((1, answer), 5)
    try:
        with torch.no_grad():
            model(**rows)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("config", LIMITED, ids=lambda config: config.model_type)
def test_a_model_fails_where_its_positions_end(config):
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config).eval()
    assert positions_of(model) == Positions(prompt=12, answer=12 if config.is_encoder_decoder else None)
    assert reads(model, prompt=12, answer=12)
    assert not reads(model, prompt=13, answer=1)
    if config.is_encoder_decoder:
        assert not reads(model, prompt=1, answer=13)


def test_rotary_relative_and_alibi_positions_do_not_end():
    bloom = BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2)
    models = tiny_llama(llama_tokenizer()), tiny_t5(t5_tokenizer()), AutoModelForCausalLM.from_config(bloom)
    assert [positions_of(model) for model in models] == [Positions(prompt=None, answer=None)] * 3
    assert [trained_length(model) for model in models] == [512, None, None]


def task(words: int, metric: str = "label_ranking") -> Task:
    rows = Dataset.from_list([{"prompt": "light " * words, "completion": "true"}] * 2)
    labels = ("true", "false") if metric == "label_ranking" else None
    return Task(name="a", train=rows, dev=None, eval=rows, labels=labels, metric=metric, source="here")


def check(model, item: Task, **encoding):
    tokenizer = t5_tokenizer() if model.config.is_encoder_decoder else llama_tokenizer()
    return check_lengths(
        [item], tokenizer, model, encoding=Encoding(**encoding), evaluation=EvalConfig(max_new_tokens=9)
    )


def test_rows_beyond_the_positions_are_refused_with_the_budget_that_fits():
    model = tiny_gpt2(llama_tokenizer(), positions=24)
    assert check(model, task(4)) == []  # short rows pass, whatever the budget
    message = (
        r"task a, train: the longest row has \d+ tokens \(\d+ of the prompt, \d of the answer\), but the model has"
    )
    with pytest.raises(
        ConfigError, match=rf"{message} only 24 positions\. Set encoding\.max_prompt_tokens to (\d+)"
    ) as e:
        check(model, task(100))
    room = int(str(e.value).split("max_prompt_tokens to ")[1].split(",")[0])
    assert check(model, task(100), max_prompt_tokens=room) == []
    with pytest.raises(ConfigError, match=r"task a, eval: the longest row has"):  # 9 tokens may be generated
        check(model, task(100, "exact_match"), max_prompt_tokens=room)


@pytest.mark.parametrize("words, advice", [(6, r"Set encoding\.max_prompt_tokens to \d"), (20, "Use shorter labels")])
@pytest.mark.parametrize("budget", [1, 50])
def test_every_label_is_read_behind_every_prompt(words, advice, budget):
    """Also one that is no row's answer, and longer than the budget of the answers that are trained."""
    item = replace(task(10), labels=("true", "good " * words))
    model, tokenizer = tiny_gpt2(llama_tokenizer(), positions=24), llama_tokenizer()
    asked = {"encoding": Encoding(max_prompt_tokens=12, max_completion_tokens=budget), "config": EvalConfig()}
    with pytest.raises(IndexError):
        rank_labels(model, tokenizer, item.eval["prompt"], item.labels, **asked)
    with pytest.raises(ConfigError, match=rf"task a, eval: the longest row has .* only 24 positions\. {advice}"):
        check(model, item, max_prompt_tokens=12, max_completion_tokens=budget)


def test_longer_rows_than_a_rotary_model_was_trained_with_are_said():
    model = tiny_llama(llama_tokenizer(), max_position_embeddings=24)
    (line,) = check(model, task(100))
    assert line.endswith("but the model was trained on at most 24")
    assert check(model, task(4)) == []


def test_an_estimate_of_budgets_beyond_the_positions_is_refused():
    with pytest.raises(ConfigError, match=r"562 tokens .* only 512 positions\. Set encoding\.max_prompt_tokens to 462"):
        check_budgets(tiny_gpt2(llama_tokenizer()), Encoding())
