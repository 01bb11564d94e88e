"""Base models: found, fingerprinted, loaded as what they are, or refused with the reason."""

import re

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from gorp.errors import ModelError
from gorp.models import SHIPPED, ModelConfig, load_model, load_tokenizer, locate, weights_sha256
from tests.models_small import tiny_llama, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer
from tests.workspace.project import save_model


def refused(path, message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        load_model(ModelConfig(path=str(path)), "cpu")


@pytest.mark.parametrize(
    ("family", "build", "tokenize"), [("t5", tiny_t5, t5_tokenizer), ("llama", tiny_llama, llama_tokenizer)]
)
def test_a_folder_gives_the_model_that_was_saved(tmp_path, family, build, tokenize):
    save_model(tmp_path, family=family)
    model, tokenizer = load_model(ModelConfig(path=str(tmp_path)), "cpu")
    expected = build(tokenize())
    assert type(model) is type(expected) and not model.training
    for name, parameter in expected.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)
    assert tokenizer("The light is green.")["input_ids"] == tokenize()("The light is green.")["input_ids"]


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.bfloat16)]
)
def test_the_dtype_is_the_one_asked_for(tmp_path, dtype, expected):
    tokenizer = llama_tokenizer()
    tiny_llama(tokenizer).bfloat16().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_model(ModelConfig(path=str(tmp_path), dtype=dtype), "cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_without_a_pad_token_eos_pads(tmp_path):
    save_model(tmp_path, family="llama")
    tokenizer = llama_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelConfig(path=str(tmp_path)))
    assert loaded.pad_token_id == loaded.eos_token_id is not None


def test_the_fingerprint_is_of_the_weights_alone(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_model(tmp_path / name, seed=seed)
    (tmp_path / "b" / "README.md").write_text("another file")
    a, b, c = (weights_sha256(tmp_path / name) for name in "abc")
    assert a == b != c
    weights = tmp_path / "b" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert weights_sha256(tmp_path / "b") != a


def test_a_shipped_name_is_found_in_the_package_or_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("gorp.models.SHIPPED_FOLDER", tmp_path)
    refused(SHIPPED[0], f"this installation of gorp does not contain `{SHIPPED[0]}`")
    save_model(tmp_path / SHIPPED[0])
    assert locate(ModelConfig(path=SHIPPED[0])) == tmp_path / SHIPPED[0]


def test_a_name_that_is_nothing_is_answered_with_the_nearest_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("gorp.models.SHIPPED_FOLDER", tmp_path)
    refused("gorp-tiny-t6", "no shipped model (there is none), and cannot be fetched")
    (tmp_path / "gorp-tiny-t5").mkdir()
    refused("gorp-tiny-lama", "no shipped model (gorp-tiny-t5), and cannot be fetched")
    refused("gorp-tiny-t6", "Did you mean `gorp-tiny-t5`?")
    refused(tmp_path / "none", "no such folder, and no hub id either")


def test_a_folder_without_model_is_refused(tmp_path):
    refused(tmp_path, "no config.json")


def test_pickled_weights_are_refused(tmp_path):
    save_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refused(tmp_path, "Pickled weights are not loaded")


def test_an_encoder_is_refused(tmp_path):
    tokenizer = t5_tokenizer()
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    refused(tmp_path, "`bert` (BertForMaskedLM) generates no text")


def test_an_unknown_architecture_is_refused(tmp_path):
    save_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"t5"', '"t55"'))
    refused(tmp_path, "its config.json cannot be used")


def test_a_missing_tokenizer_is_refused(tmp_path):
    tiny_t5(t5_tokenizer()).save_pretrained(tmp_path)
    refused(tmp_path, "tokenizer")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    tiny_t5(t5_tokenizer(), vocab_size=100).save_pretrained(tmp_path)
    t5_tokenizer().save_pretrained(tmp_path)
    refused(tmp_path, "the tokenizer knows 400 tokens, the model 100")


def test_half_a_model_is_refused(tmp_path):
    save_model(tmp_path)
    model = tiny_t5(t5_tokenizer())
    state = {name: value for name, value in model.state_dict().items() if "decoder.block.1" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    refused(tmp_path, "they would be random")


def test_a_damaged_file_is_refused(tmp_path):
    save_model(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    refused(tmp_path, "the model cannot be loaded")
