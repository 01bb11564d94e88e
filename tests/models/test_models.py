"""Base models: found, fingerprinted, loaded as what they are, or refused with the reason."""

import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel

from gorp.errors import ConfigError, ModelError
from gorp.models.files import base_digests, weights_sha256
from gorp.models.load import SHIPPED, ModelConfig, load_model, load_tokenizer, locate
from gorp.progress import Progress
from gorp.workspace import Workspace, load_config
from gorp.workspace.prepare import prepare
from tests.models_small import tiny_llama, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer
from tests.workspace.project import make_project, save_model


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
    monkeypatch.setattr("gorp.models.load.SHIPPED_FOLDER", tmp_path)
    refused(SHIPPED, f"this installation of gorp does not contain `{SHIPPED}`")
    save_model(tmp_path / SHIPPED)
    assert locate(ModelConfig(path=SHIPPED)) == tmp_path / SHIPPED


def test_a_name_that_is_nothing_is_answered_with_the_nearest_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("gorp.models.load.SHIPPED_FOLDER", tmp_path)
    refused("gorp-tiny-t6", "not the shipped model (there is none), and cannot be downloaded")
    (tmp_path / "gorp-tiny-t5").mkdir()
    refused("gorp-tiny-lama", "not the shipped model (gorp-tiny-t5), and cannot be downloaded")
    refused("gorp-tiny-t6", "Did you mean `gorp-tiny-t5`?")
    refused(tmp_path / "none", "there is no such folder, and it is not a hub id either")


def test_a_folder_without_model_is_refused(tmp_path):
    refused(tmp_path, "no config.json")


def test_pickled_weights_are_refused(tmp_path):
    save_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refused(tmp_path, "Pickled weights are not loaded")


def save_bert(folder, head: type, **changes) -> None:
    tokenizer = llama_tokenizer()
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    head(BertConfig(vocab_size=len(tokenizer), **size, **changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def change_config(folder, **changes) -> None:
    path = folder / "config.json"
    values = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(values))


def test_an_encoder_is_refused(tmp_path):
    save_bert(tmp_path, BertForMaskedLM)
    refused(tmp_path, "`bert` (BertForMaskedLM) does not generate text")


@pytest.mark.filterwarnings("ignore")  # transformers advises `is_decoder`
def test_an_encoder_under_a_decoders_name_is_refused_by_what_it_does(tmp_path):
    save_bert(tmp_path / "a", BertLMHeadModel)
    refused(
        tmp_path / "a", "`bert` (BertLMHeadModel) does not generate text: its logits at a token depend on later tokens"
    )
    save_bert(tmp_path / "b", BertForMaskedLM)
    change_config(tmp_path / "b", architectures=None)
    refused(tmp_path / "b", "does not generate text: its logits at a token depend on later tokens")
    save_bert(tmp_path / "c", BertLMHeadModel, is_decoder=True)
    load_model(ModelConfig(path=str(tmp_path / "c")), "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t55"}, "its config.json cannot be used"),
        ({"model_type": None}, "config.json: names no `model_type`"),
        ({"num_layers": 1, "num_decoder_layers": 1}, "weights that have no place in T5ForConditionalGeneration"),
        ({"num_layers": 3}, "they would be random"),
        ({"d_ff": 40}, "has shape (48, 32) in the files, but (40, 32) by config.json"),
        ({"quantization_config": {"load_in_4bit": True}}, "its weights are quantized (bitsandbytes)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "its weights are quantized (gptq)"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}, "comes with Python code of its own (`auto_map`)"),
        (
            {"architectures": ["M"], "model_type": "bert", "auto_map": {"AutoConfig": "own.C"}},
            "It names Python code of its own",
        ),
    ],
)
def test_a_config_that_does_not_describe_the_files_is_refused(tmp_path, changes, message):
    save_model(tmp_path)
    change_config(tmp_path, **changes)
    refused(tmp_path, message)


def test_a_damaged_config_is_called_so(tmp_path):
    save_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "config.json: not a whole JSON file")


def test_tables_of_older_files_are_no_weights_without_a_place(tmp_path):
    save_model(tmp_path, family="llama")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, path, {"format": "pt"})
    load_model(ModelConfig(path=str(tmp_path)), "cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    model = tiny_t5(t5_tokenizer())
    model.decoder.block[1].layer[2].DenseReluDense.wo.weight.data[3, 4] = value
    model.save_pretrained(tmp_path)
    t5_tokenizer().save_pretrained(tmp_path)
    refused(tmp_path, "the weight `decoder.block.1.layer.2.DenseReluDense.wo.weight` has values that are not finite")


@pytest.mark.filterwarnings("ignore")  # PEFT asks for what transformers renamed
def test_an_adapter_is_refused_alone_and_beside_the_weights(tmp_path):
    save_model(tmp_path / "model", family="llama")
    base, _ = load_model(ModelConfig(path=str(tmp_path / "model")), "cpu")
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    for name in ("adapter", "model"):
        adapted.save_pretrained(tmp_path / name)
        refused(
            tmp_path / name,
            "it contains a LoRA adapter (PEFT), with or without the base weights. Merge it into its",
        )


def test_a_link_to_nowhere_is_refused(tmp_path):
    save_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("blobs/gone")
    refused(tmp_path, "model.safetensors: a link to `blobs/gone`, which does not exist")


def test_weights_of_another_name_are_refused(tmp_path):
    save_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    refused(tmp_path, "holds `weights.safetensors`, but weights are read only from `model.safetensors`")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../one.safetensors", "names `../one.safetensors`; it must be a *.safetensors file of the same folder"),
        ("one.bin", "names `one.bin`; it must be a *.safetensors file of the same folder"),
        ("two.safetensors", "names `two.safetensors`, which is missing"),
    ],
)
def test_an_index_names_files_of_its_folder_that_are_there(tmp_path, name, message):
    save_model(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    index = weights.with_name("model.safetensors.index.json")
    keys = dict.fromkeys(load_file(weights), "one.safetensors")
    weights.rename(weights.with_name("one.safetensors"))
    index.write_text(json.dumps({"metadata": {}, "weight_map": keys}))
    load_model(ModelConfig(path=str(tmp_path / "model")), "cpu")
    (tmp_path / "one.safetensors").write_bytes(b"")
    index.write_text(json.dumps({"weight_map": keys | {"lm_head.weight": name}}))
    refused(tmp_path / "model", message)


def test_an_empty_path_is_refused():
    with pytest.raises(ConfigError, match=re.escape("model.path is empty")):
        ModelConfig(path="")


def test_the_digests_are_of_what_the_model_computes(tmp_path):
    save_model(tmp_path)
    before = base_digests(tmp_path)
    change_config(tmp_path, transformers_version="9.9", torch_dtype="bfloat16", use_cache=False)
    (tmp_path / "README.md").write_text("another file")
    assert base_digests(tmp_path) == before
    change_config(tmp_path, layer_norm_epsilon=0.5)
    changed = base_digests(tmp_path)
    assert {key for key in before if before[key] != changed[key]} == {"config_sha256"}
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    first, second = sorted(vocabulary)[100:102]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(values))
    assert base_digests(tmp_path)["tokenizer_sha256"] != before["tokenizer_sha256"]


def test_what_decides_an_answer_beside_the_weights_has_a_digest(tmp_path):
    save_model(tmp_path)
    (tmp_path / "modeling_own.py").write_text("SCALE = 1")
    generation = tmp_path / "generation_config.json"

    def changed(*, trust: bool = False) -> set[str]:
        now = base_digests(tmp_path, trust_remote_code=trust)
        return {key for key in now if now[key] != before[trust][key]}

    before = {trust: base_digests(tmp_path, trust_remote_code=trust) for trust in (False, True)}
    values = json.loads(generation.read_text())
    generation.write_text(json.dumps(values | {"temperature": 0.3, "transformers_version": "9"}, indent=8))
    assert not changed()
    for field in ("eos_token_id", "decoder_start_token_id", "forced_bos_token_id"):
        generation.write_text(json.dumps(values | {field: 7}))
        assert changed() == {"generation_sha256"}
    generation.unlink()
    assert changed() == {"generation_sha256"}
    generation.write_text(json.dumps(values))
    (tmp_path / "modeling_own.py").write_text("SCALE = 2")
    assert not changed() and changed(trust=True) == {"code_sha256"}
    (tmp_path / "added_tokens.json").write_text('{"<new>": 399}')
    assert changed() == {"tokenizer_more_sha256"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "nosuch"}, "its config.json cannot be used (The checkpoint you are trying to load has model"),
        ({"num_heads": "abc"}, "its config.json cannot be used (Validation error for field 'num_heads': TypeError"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named_and_not_the_tokenizer(tmp_path, changes, message):
    path = make_project(tmp_path)
    change_config(tmp_path / "model", **changes)
    refused(tmp_path / "model", message)
    with pytest.raises(ModelError, match=re.escape(message)):
        prepare(load_config(path), Workspace(tmp_path / "run"), Progress())


def test_a_gpu_without_bfloat16_is_refused_before_a_model_that_needs_it_is_loaded(tmp_path, monkeypatch):
    path = make_project(tmp_path, model={"path": "model", "dtype": "bfloat16"}, method={"name": "sequential_full"})
    monkeypatch.setattr("gorp.workspace.prepare.load_model", lambda *_: 1 / 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(ConfigError, match=r"the model is in bfloat16 .* this GPU has no bfloat16"):
        prepare(load_config(path), Workspace(tmp_path / "run"), Progress())


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


def test_a_config_of_a_far_larger_model_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    """By default a Llama has 7 billion weights: a config.json in the wrong folder used all memory of the machine."""
    save_model(tmp_path)
    path = tmp_path / "config.json"
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 400}
    path.write_text(json.dumps(config))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    refused(tmp_path, "config.json describes a model of 6,479,548,416 weights, but the files hold only 56,448")


def test_a_damaged_file_is_refused(tmp_path):
    save_model(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    refused(tmp_path, "the model cannot be loaded")
