"""Every kind of model is trained, or refused before training: no method meets a model that it stumbles over."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from gorp.data import Encoding
from gorp.errors import ModelError
from gorp.layers.lora import LoraSettings
from gorp.layers.targets import resolve
from gorp.methods import METHODS
from gorp.training import train_task
from tests.runs import rows
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # models warn of kernels that are not installed

BASE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
HEADS = BASE | {"head_dim": 8}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
SIDES = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}

DECODERS = {
    "qwen2": BASE,
    "phi3": BASE | {"original_max_position_embeddings": 512},
    "gemma2": HEADS | {"query_pre_attn_scalar": 8},
    "gemma3n_text": HEADS
    | {
        "vocab_size_per_layer_input": 400,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
        "sliding_window": 64,
    },
    "llama4_text": HEADS
    | {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1},
    "mixtral": BASE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": HEADS
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [0]},
    "glm4_moe": HEADS | ROUTED | {"n_shared_experts": 1},
    "gpt_oss": HEADS
    | {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen3_next": HEADS
    | LINEAR
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "bamba": BASE | MAMBA | {"attn_layer_indices": [1]},
    "mamba2": {
        "hidden_size": 32,
        "state_size": 8,
        "num_hidden_layers": 2,
        "expand": 2,
        "head_dim": 8,
        "num_heads": 8,
        "n_groups": 1,
        "chunk_size": 16,
    },
    "zamba2": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "mamba_d_state": 8,
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
        "mamba_ngroups": 1,
        "chunk_size": 16,
        "hybrid_layer_ids": [1, 3],
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_mem_blocks": 1,
        "use_mem_rope": False,
        "max_position_embeddings": 512,
        "adapter_rank": 4,
    },
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "context_length": 512},
    "gpt2": SMALL,
    "gptj": SMALL | {"rotary_dim": 8},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512, "expansion_ratio": 2},
    "bitnet": BASE,
}
ENCODER_DECODERS = {
    "bart": SIDES | {"max_position_embeddings": 512},
    "pegasus": SIDES | {"max_position_embeddings": 512},
    "switch_transformers": {
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


def build(kind: str):
    """A random model of `kind` and its tokenizer."""
    if kind in DECODERS:
        tokenizer = llama_tokenizer()
        ids = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = CONFIG_MAPPING[kind](vocab_size=len(tokenizer), **ids, **DECODERS[kind])
        model = AutoModelForCausalLM.from_config(config)
    else:
        tokenizer = t5_tokenizer()
        ids = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 0, "decoder_start_token_id": 0}
        config = CONFIG_MAPPING[kind](vocab_size=len(tokenizer), **ids, **ENCODER_DECODERS[kind])
        model = AutoModelForSeq2SeqLM.from_config(config)
    return model.eval(), tokenizer


@pytest.mark.parametrize("way", ["lora", "core", "full"])
@pytest.mark.parametrize("kind", [*DECODERS, *ENCODER_DECODERS])
def test_a_step_is_taken_or_refused(kind, way, tmp_path):
    torch.use_deterministic_algorithms(False)  # some scans have no deterministic form
    model, tokenizer = build(kind)
    gorp, everywhere = METHODS["gorp"], LoraSettings(r=4, target_modules="all-linear")
    method = {
        "lora": lambda: METHODS["incremental_lora"](None, everywhere),
        "core": lambda: gorp(gorp.Config(rank=4, refresh_every=2, full_modules="all-linear"), everywhere),
        "full": lambda: METHODS["sequential_full"](),
    }[way]()
    if kind == "gpt2" and way != "full":
        with pytest.raises(ModelError, match="`all-linear` finds no layer"):
            method.setup(model)
        return
    method.setup(model)
    training = {"per_device_train_batch_size": 2, "max_steps": 2, "save_strategy": "no", "use_cpu": True}
    train_task(
        model,
        tokenizer,
        method,
        rows(1, 4),
        name="one",
        index=1,
        seed=0,
        training=training,
        encoding=Encoding(max_prompt_tokens=48),
        folder=tmp_path,
    )
    moved = {name.removesuffix(".weight") for name, delta in method.deltas.items() if delta.norm() > 0}
    assert moved and (way == "full" or moved <= set(resolve(model, "all-linear", role="lora")))
    assert method.deltas.keys() <= dict(model.named_parameters()).keys()  # the model is plain again
