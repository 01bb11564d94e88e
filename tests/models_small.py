"""Tiny random models for tests, built from transformers configurations: a T5, a Llama, and three that are otherwise.

The global random state is left as it was, so that building a model never changes what a test draws afterwards.
"""

from typing import Any

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerBase,
    RwkvConfig,
    RwkvForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)


def tiny_t5(tokenizer: PreTrainedTokenizerBase, seed: int = 0, **overrides: Any) -> T5ForConditionalGeneration:
    """A random T5 v1.1 for `tokenizer`: width 32, 2 + 2 layers, 4 heads of 8, gated GELU, untied head, no dropout.

    Float32, in eval mode.

    Args:
        tokenizer: Gives the vocabulary's size and the pad and eos ids.
        seed: Two models of one seed are equal bit for bit.
        overrides: Fields of `T5Config` that win over the ones above, for example `dropout_rate=0.1`.
    """
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "dropout_rate": 0.0,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5ForConditionalGeneration(T5Config(**(settings | overrides))).eval()


def tiny_llama(tokenizer: PreTrainedTokenizerBase, seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A random Llama for `tokenizer`: width 32, 2 layers, 4 heads of 8 over 2 key-value heads, tied head, no dropout.

    Float32, in eval mode.

    Args:
        tokenizer: Gives the vocabulary's size and the bos, eos and pad ids.
        seed: Two models of one seed are equal bit for bit.
        overrides: Fields of `LlamaConfig` that win over the ones above, for example `attention_dropout=0.1`.
    """
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**(settings | overrides))).eval()


def tiny_moe(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> DeepseekV3ForCausalLM:
    """A random DeepSeek-V3 for `tokenizer`: a dense layer, a layer of 4 experts with a shared one, width 32."""
    config = DeepseekV3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DeepseekV3ForCausalLM(config).eval()


def tiny_mamba(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> MambaForCausalLM:
    """A random Mamba for `tokenizer`: width 32, 2 layers. Large weights, so that its answers depend on the prompt."""
    config = MambaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        state_size=4,
        num_hidden_layers=2,
        expand=2,
        time_step_rank=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MambaForCausalLM(config).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "A_log" not in name:
                parameter.data.normal_(0, 0.2)
    return model


def tiny_gpt2(tokenizer: PreTrainedTokenizerBase, seed: int = 0, positions: int = 512) -> GPT2LMHeadModel:
    """A random GPT-2 for `tokenizer`: Conv1D layers, learned positions, width 32, 2 layers, no dropout."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=positions,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def tiny_rwkv(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> RwkvForCausalLM:
    """A random RWKV for `tokenizer`: recurrent, and it reads its padding. Width 32, 2 layers, large weights."""
    config = RwkvConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        attention_hidden_size=32,
        num_hidden_layers=2,
        context_length=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RwkvForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.normal_(0, 0.2)
    return model
