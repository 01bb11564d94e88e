import logging

import pytest
import torch
from transformers import GenerationConfig

from gorp.data import Encoding, encode_prompts
from gorp.evaluation import EvalConfig, generate_answers
from tests.models_small import tiny_llama, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


PROMPTS = [
    "Is the light red?",
    "A",
    "What is the topic of the following paragraph? Choose one from the option.\nOption: World, Sports\nAnswer:",
    "The harbour was quiet",
    "Is the statement true? ",
]
ENCODING = Encoding()


def t5():
    tokenizer = t5_tokenizer()
    return tiny_t5(tokenizer, seed=3).double(), tokenizer


def llama():
    tokenizer = llama_tokenizer()
    return tiny_llama(tokenizer, initializer_range=0.5).double(), tokenizer


def answers(model, tokenizer, prompts=PROMPTS, **settings):
    return generate_answers(
        model, tokenizer, prompts, encoding=ENCODING, config=EvalConfig(**({"max_new_tokens": 8} | settings))
    )


def greedy_by_hand(model, tokenizer, prompt, steps):
    """Slow reference: one forward pass over all tokens so far for every token; no cache, no batch, no padding."""
    encoder_decoder = model.config.is_encoder_decoder
    ids = torch.tensor(encode_prompts([prompt], tokenizer, encoder_decoder=encoder_decoder, encoding=ENCODING))
    new: list[int] = []
    for _ in range(steps):
        with torch.no_grad():
            if encoder_decoder:
                logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[tokenizer.pad_token_id, *new]])).logits
            else:
                logits = model(input_ids=torch.cat([ids, torch.tensor([new], dtype=torch.int64)], dim=1)).logits
        new.append(int(logits[0, -1].argmax()))
        if new[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("build", [t5, llama])
class TestBothFamilies:
    def test_batched_answers_equal_those_of_a_simple_loop_over_prompts(self, build):
        model, tokenizer = build()
        expected = [greedy_by_hand(model, tokenizer, prompt, 8) for prompt in PROMPTS]
        assert len(set(expected)) > 1, "the model must tell the prompts apart, or the test proves nothing"
        assert answers(model, tokenizer) == expected

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
    def test_the_batch_size_does_not_change_the_answers(self, build, batch_size):
        model, tokenizer = build()
        assert answers(model, tokenizer, batch_size=batch_size) == answers(model, tokenizer, batch_size=4)

    def test_answers_come_back_in_the_order_of_the_prompts(self, build):
        model, tokenizer = build()
        assert answers(model, tokenizer, PROMPTS[::-1]) == answers(model, tokenizer)[::-1]

    def test_one_token_more_continues_the_answer(self, build):
        model, tokenizer = build()
        for short, long in zip(
            answers(model, tokenizer, max_new_tokens=3), answers(model, tokenizer, max_new_tokens=6), strict=True
        ):
            assert long.encode().startswith(short.rstrip("�").encode())

    def test_modes_gradients_and_the_random_state_do_not_change(self, build):
        model, tokenizer = build()
        model.train()
        frozen = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
        frozen.eval()
        before = [module.training for module in model.modules()]
        state = torch.get_rng_state()
        answers(model, tokenizer)
        assert [module.training for module in model.modules()] == before
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.is_grad_enabled() and all(parameter.grad is None for parameter in model.parameters())

    def test_dropout_is_off(self, build):
        model, tokenizer = build()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.9
        expected = answers(model, tokenizer)
        model.train()
        assert answers(model, tokenizer) == expected

    def test_no_prompts_give_no_answers(self, build):
        assert answers(*build(), []) == []


class TestStoredSettings:
    @pytest.mark.parametrize("build", [t5, llama])
    def test_stored_sampling_settings_neither_warn_nor_change_the_answer(self, build, caplog):
        model, tokenizer = build()
        expected = answers(model, tokenizer)
        model.generation_config = GenerationConfig(
            do_sample=True,
            temperature=0.6,
            top_p=0.9,
            top_k=7,
            repetition_penalty=1.5,
            no_repeat_ngram_size=1,
            max_length=5,
            min_length=7,
            min_p=0.1,
            use_cache=False,
            eos_token_id=[tokenizer.eos_token_id],
            decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        )
        transformers_log = logging.getLogger("transformers")
        transformers_log.addHandler(caplog.handler)
        try:
            assert answers(model, tokenizer) == expected
        finally:
            transformers_log.removeHandler(caplog.handler)
        assert [record.getMessage() for record in caplog.records] == []

    def test_a_second_end_token_of_the_model_ends_the_answer_too(self):
        model, tokenizer = llama()
        whole = answers(model, tokenizer, ["A"])[0]
        first = greedy_by_hand(model, tokenizer, "A", 1)
        assert whole != first
        ids = torch.tensor(encode_prompts(["A"], tokenizer, encoder_decoder=False, encoding=ENCODING))
        second = int(model.generate(input_ids=ids, max_new_tokens=2, do_sample=False)[0, -1])
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, second]
        stopped = answers(model, tokenizer, ["A"])[0]
        assert stopped == greedy_by_hand(model, tokenizer, "A", 2)


def test_a_tokenizer_without_pad_is_padded_with_eos():
    model, tokenizer = llama()
    expected = answers(model, tokenizer)
    tokenizer.pad_token = None
    assert answers(model, tokenizer) == expected


def test_progress_counts_rows():
    model, tokenizer = llama()
    seen = []
    generate_answers(
        model,
        tokenizer,
        PROMPTS,
        encoding=ENCODING,
        config=EvalConfig(batch_size=2, max_new_tokens=1),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
