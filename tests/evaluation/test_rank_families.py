"""Label scores are minus the training loss for every kind of cache: windows, recurrent states, convolutions."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.evaluation.test_rank import LABELS, PROMPTS, rank, rank_one_by_one
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


BASE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "gemma3_text": WINDOW | {"query_pre_attn_scalar": 8},
    "gpt_oss": WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "mamba": {"state_size": 4, "expand": 2, "time_step_rank": 2},
    "qwen3_5_text": LINEAR,
}
SIDES = {
    "prophetnet": {  # its decoder takes one token at a time behind a cache
        "hidden_size": 32,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
    },
    "switch_transformers": {  # its encoder refuses `use_cache`, and its output is not that of other encoders
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_sparse_encoder_layers": 1,
        "num_decoder_layers": 2,
        "num_sparse_decoder_layers": 1,
        "num_heads": 4,
        "num_experts": 4,
    },
}


def build(family):
    if family in SIDES:
        auto, tokenizer, sizes = AutoModelForSeq2SeqLM, t5_tokenizer(), SIDES[family] | {"decoder_start_token_id": 0}
    else:
        auto, tokenizer, sizes = AutoModelForCausalLM, llama_tokenizer(), BASE | FAMILIES[family]
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CONFIG_MAPPING[family](**(sizes | ids | {"vocab_size": len(tokenizer)}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "A_log" not in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval(), tokenizer


@pytest.mark.filterwarnings("ignore")  # some families warn that a faster kernel is not installed
@pytest.mark.parametrize("family", [*FAMILIES, *SIDES])
def test_a_score_is_minus_the_training_loss(family):
    model, tokenizer = build(family)
    expected = rank_one_by_one(model, tokenizer, PROMPTS, LABELS)
    for scores, wanted in zip(rank(model, tokenizer), expected, strict=True):
        assert scores == pytest.approx(wanted, rel=1e-3, abs=1e-3)
