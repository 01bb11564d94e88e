"""Build models of known shapes with random weights, with fewer layers for small machines, and batches for them.

With 2 of 12 layers a model also has 2 / 12 of the vocabulary. So each part takes the same share of a step as in the
whole model; otherwise the output head, which is the same for every peer, would take most of the time.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from gorp.models.load import SHIPPED_FOLDER


def _t5(width: int, hidden: int, heads: int, layers: int) -> T5Config:
    return T5Config(
        d_model=width,
        d_ff=hidden,
        num_heads=heads,
        num_layers=layers,
        num_decoder_layers=layers,
        vocab_size=32128,
        pad_token_id=0,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )


def _llama(width: int, hidden: int, heads: int, kv_heads: int, layers: int, vocabulary: int, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


SHAPES: dict[str, Callable[[], Any]] = {
    "gorp-tiny": lambda: AutoConfig.from_pretrained(SHIPPED_FOLDER / "gorp-tiny-t5"),
    "t5-base": lambda: _t5(768, 3072, 12, 12),
    "t5-large": lambda: _t5(1024, 4096, 16, 24),
    "smollm2": lambda: _llama(576, 1536, 9, 3, 30, 49152, True),
    "llama-1b": lambda: _llama(2048, 8192, 32, 8, 16, 128256, True),
    "llama-7b": lambda: _llama(4096, 11008, 32, 32, 32, 32000, False),
}
"""Name -> configuration: the model that gorp ships, T5 (v1.0), SmolLM2-135M, Llama 3.2 1B, Llama 2 7B."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_shape(name: str, *, layers: int | None, device: str, dtype: str) -> PreTrainedModel:
    """Return a model of one of `SHAPES` with random weights, in training mode, without dropout.

    Args:
        name: A key of `SHAPES`.
        layers: Depth (of the encoder and of the decoder); None for the whole model.
        device: "cpu" or "cuda".
        dtype: Dtype of the weights, a key of `DTYPES`.
    """
    config = SHAPES[name]()
    whole = config.num_hidden_layers
    if layers is not None and layers < whole:
        config.num_hidden_layers = layers
        if config.is_encoder_decoder:
            config.num_layers = config.num_decoder_layers = layers
        config.vocab_size = config.vocab_size * layers // whole
    config.dropout_rate = 0.0
    config.use_cache = False
    kind = T5ForConditionalGeneration if config.is_encoder_decoder else LlamaForCausalLM
    torch.manual_seed(0)
    with torch.device(device):
        return kind(config).to(DTYPES[dtype]).train()


def twin(model: nn.Module) -> Any:
    """Return a frozen copy of a model that shares the memory of its weights: new modules and `Parameter`s, same data.

    So peers that are measured together need only one set of weights, and several 7B peers fit into memory.
    """
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, shared)


def random_batch(model: PreTrainedModel, *, rows: int, tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """Return a batch of random tokens without padding; labels of an encoder-decoder are a quarter as long."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size

    def draw(length: int) -> Tensor:
        return torch.randint(3, vocabulary, (rows, length), generator=generator).to(model.device)

    ids = draw(tokens)
    return {"input_ids": ids, "labels": draw(max(1, tokens // 4)) if model.config.is_encoder_decoder else ids}


def queries_and_values(model: nn.Module) -> tuple[str, ...]:
    """Return patterns of the layers with a LoRA pair: queries and values of every attention."""
    return ("q", "v") if model.config.is_encoder_decoder else ("q_proj", "v_proj")  # pyright: ignore
