"""Logits at the answers alone give transformers' own loss and gradients, and are not taken where they would not."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from gorp.training import trainer
from gorp.training.answers import IGNORED, answer_loss
from tests.runs import fresh, tiny, train


TOKENS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}

FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "granite": {"logits_scaling": 3.0},
    "phi": {},
    "gpt_neox": {},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
}


def model_of(family: str, **overrides):
    torch.manual_seed(0)
    usual = TOKENS if family == "gpt2" else TOKENS | SMALL
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(usual | FAMILIES[family] | overrides)))


def batch():
    torch.manual_seed(1)
    ids = torch.randint(3, 50, (3, 9))
    labels = torch.full_like(ids, IGNORED)
    labels[0, 4:6], labels[1, 7:], labels[2, 2:4] = ids[0, 4:6], ids[1, 7:], ids[2, 2:4]
    mask = torch.ones_like(ids)
    mask[0, 6:], mask[2, 4:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("items", [None, 11])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_transformers(family, items):
    model, data = model_of(family).eval(), batch()
    more = {} if items is None else {"num_items_in_batch": items}
    wanted = model(**data, **more).loss
    wanted.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    own = answer_loss(model)
    with own.watching(data["labels"]):
        outputs = model(input_ids=data["input_ids"], attention_mask=data["attention_mask"])
    assert outputs.logits.shape == (1, 6, 50)  # of 27 tokens
    loss = own(outputs, data["labels"], items)
    loss.backward()
    torch.testing.assert_close(loss, wanted)
    for name, p in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
    assert model(**data).logits.shape == (3, 9, 50)


class Turned(nn.Linear):
    """A head that looks at its neighbours."""

    def forward(self, x):
        return super().forward(x.cumsum(dim=1))


def test_it_is_left_to_transformers_where_it_would_not_be_the_same():
    assert answer_loss(tiny("t5")) is None
    assert answer_loss(model_of("mixtral", output_router_logits=True)) is None
    model = model_of("llama", tie_word_embeddings=False)
    model.train()
    assert answer_loss(model) is not None and model.training
    model.lm_head = Turned(16, 50)
    assert answer_loss(model) is None
    model = model_of("llama")
    model.loss_function = lambda *_, **__: None
    assert answer_loss(model) is None


def test_a_run_learns_the_same(tmp_path, monkeypatch):
    ends = {}
    for name in ("answers", "whole"):
        if name == "whole":
            monkeypatch.setattr(trainer, "answer_loss", lambda _: None)
        model = tiny("llama")
        method = fresh("gorp", model)
        train(model, method, 1, tmp_path / name, optim="sgd")
        ends[name] = {key: delta.dense() for key, delta in method.deltas.items()}
    assert ends["answers"]
    for key, change in ends["answers"].items():
        assert change.norm() > 0
        torch.testing.assert_close(change, ends["whole"][key], rtol=1e-3, atol=1e-7, msg=key)


def test_one_labelled_row_of_two_and_none_at_all():
    model, data = model_of("llama").eval(), batch()
    data["labels"][1:] = IGNORED
    own = answer_loss(model)
    for items, labels in ((4, data["labels"]), (4, torch.full_like(data["labels"], IGNORED))):
        with own.watching(labels):
            loss = own(model(input_ids=data["input_ids"], attention_mask=data["attention_mask"]), labels, items)
        wanted = model(**data | {"labels": labels}, num_items_in_batch=items).loss
        torch.testing.assert_close(loss, wanted)
        loss.backward()
