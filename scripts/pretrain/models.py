"""The two architectures: an encoder-decoder T5 and a decoder-only Llama of about nine million weights.

Depth of the T5 lies in its encoder: the models are fine-tuned on classification with long prompts and one-word
answers. Both tie input and output embeddings. T5 has no dropout, as in T5 v1.1 pre-training.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration

from scripts.pretrain.tokenizer import VOCABULARY


MAX_LENGTH = 1024
"""Longest input in tokens of the Llama; T5 has relative positions and no limit of its own."""

EMBEDDING_DEVIATION = {"t5": 1.0, "llama": 256**-0.5}
"""Standard deviation of embeddings that come from an encoder. T5 divides what goes to its head by the root of the
width, so that the logits of both have the same size."""


def t5_config(vocabulary: int = VOCABULARY) -> T5Config:
    """T5 v1.1 with gated GELU: 5 encoder and 3 decoder layers, width 256.

    Args:
        vocabulary: Number of tokens.

    Returns:
        The configuration.
    """
    return T5Config(
        vocab_size=vocabulary,
        d_model=256,
        d_kv=64,
        d_ff=704,
        num_heads=4,
        num_layers=5,
        num_decoder_layers=3,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


def llama_config(vocabulary: int = VOCABULARY) -> LlamaConfig:
    """Llama: 8 layers, width 256, 4 query heads and 2 key-value heads.

    Args:
        vocabulary: Number of tokens.

    Returns:
        The configuration.
    """
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )


def build(architecture: str, seed: int, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """Make a model with random weights.

    Args:
        architecture: "t5" or "llama".
        seed: Seed of the weights.
        vocabulary: Number of tokens.

    Returns:
        The model in float32 on the CPU.
    """
    torch.manual_seed(seed)
    if architecture == "t5":
        return T5ForConditionalGeneration(t5_config(vocabulary))
    return LlamaForCausalLM(llama_config(vocabulary))
