"""The two architectures: an encoder-decoder T5 and a decoder-only Llama, as wide as the encoder they begin from.

With MiniLM-L6 (384 wide, 6 layers) both have about 15.4 million weights. The depth of the T5 lies in its encoder: the
models are fine-tuned on classification with long prompts and short answers. Both tie input and output embeddings. T5
has no dropout, as in T5 v1.1 pre-training, and plain GELU, as BERT. Both give up neurons for words: a word cut in
pieces costs more than a neuron that seldom speaks.
"""

import torch
from transformers import (
    BertConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from scripts.pretrain.tokenizer import BOS_ID, EOS_ID, PAD_ID


MAX_LENGTH = 1024
"""Longest input in tokens of the Llama; T5 has relative positions and no limit of its own."""

T5_LAYERS, LLAMA_LAYERS = (0, 2, 3, 4, 5), (0, 2, 4, 5)
"""Layers of the encoder that are taken. Without training, leaving out the second harms least."""

T5_NEURONS, LLAMA_NEURONS = 3 / 4, 2 / 3
"""Share of a layer's neurons that are kept."""

T5_EXTRA = 8
"""Coordinates of the T5's stream that are the same for every token. The Llama has two for each head: transformers wants
its width to be a multiple of the heads."""


def t5_config(encoder: BertConfig, vocabulary: int) -> T5Config:
    """T5 with the encoder's layers, three quarters of their neurons, and one decoder layer.

    Args:
        encoder: Configuration of the encoder.
        vocabulary: Number of tokens.

    Returns:
        The configuration.
    """
    return T5Config(
        vocab_size=vocabulary,
        d_model=encoder.hidden_size + T5_EXTRA,
        d_kv=encoder.hidden_size // encoder.num_attention_heads,
        d_ff=int(encoder.intermediate_size * T5_NEURONS),
        num_heads=encoder.num_attention_heads,
        num_layers=len(taken("t5", encoder)),
        num_decoder_layers=1,
        feed_forward_proj="gelu",
        dropout_rate=0.0,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        decoder_start_token_id=PAD_ID,
    )


def llama_config(encoder: BertConfig, vocabulary: int) -> LlamaConfig:
    """Llama with the encoder's layers, two thirds of their neurons, and one layer more.

    Args:
        encoder: Configuration of the encoder.
        vocabulary: Number of tokens.

    Returns:
        The configuration.
    """
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=encoder.hidden_size + 2 * encoder.num_attention_heads,
        intermediate_size=int(encoder.intermediate_size * LLAMA_NEURONS),
        num_hidden_layers=len(taken("llama", encoder)) + 1,
        num_attention_heads=encoder.num_attention_heads,
        num_key_value_heads=encoder.num_attention_heads,
        head_dim=encoder.hidden_size // encoder.num_attention_heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        bos_token_id=BOS_ID,
    )


def taken(architecture: str, encoder: BertConfig) -> list[int]:
    """List the encoder's layers that a model begins with; never one that a shallow encoder has not."""
    layers = T5_LAYERS if architecture == "t5" else LLAMA_LAYERS
    return [layer for layer in layers if layer < encoder.num_hidden_layers]


def build(architecture: str, seed: int, encoder: BertConfig, vocabulary: int) -> PreTrainedModel:
    """Make a model with random weights.

    Args:
        architecture: "t5" or "llama".
        seed: Seed of the weights.
        encoder: Configuration of the encoder.
        vocabulary: Number of tokens.

    Returns:
        The model in float32 on the CPU.
    """
    torch.manual_seed(seed)
    if architecture == "t5":
        return T5ForConditionalGeneration(t5_config(encoder, vocabulary))
    return LlamaForCausalLM(llama_config(encoder, vocabulary))
