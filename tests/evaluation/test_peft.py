"""A model with adapters is scored like the model with merged adapters."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from gorp.data import Encoding
from gorp.evaluation import EvalConfig, generate_answers, rank_labels
from tests.models_small import tiny_llama, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


PROMPTS = ["Is the light red?", "The harbour was quiet and the market opened late."]


def adapted(encoder_decoder):
    tokenizer = t5_tokenizer() if encoder_decoder else llama_tokenizer()
    model = tiny_t5(tokenizer, seed=3) if encoder_decoder else tiny_llama(tokenizer, initializer_range=0.5)
    adapter = LoraConfig(
        r=2,
        target_modules=["q", "v"] if encoder_decoder else ["q_proj", "v_proj"],
        task_type="SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM",
    )
    model = get_peft_model(model, adapter)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    return model.double(), tokenizer


# PEFT 0.21 asks transformers 5.23 for a property under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("encoder_decoder", [True, False])
def test_a_model_with_adapters_answers_and_ranks_like_the_merged_model(encoder_decoder):
    model, tokenizer = adapted(encoder_decoder)
    settings = {"encoding": Encoding(), "config": EvalConfig(max_new_tokens=6)}
    answers = generate_answers(model, tokenizer, PROMPTS, **settings)
    ranked = rank_labels(model, tokenizer, PROMPTS, ["True", "very negative"], **settings)
    merged = model.merge_and_unload()
    assert generate_answers(merged, tokenizer, PROMPTS, **settings) == answers
    for scores, wanted in zip(
        ranked, rank_labels(merged, tokenizer, PROMPTS, ["True", "very negative"], **settings), strict=True
    ):
        assert scores == pytest.approx(wanted, rel=1e-9)
