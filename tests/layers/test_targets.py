"""Patterns select the right layers, and the error for a wrong pattern suggests the nearest ending."""

import pytest
from torch import nn

from gorp.errors import ModelError
from gorp.layers.lora import LoraSettings, add_lora
from gorp.layers.low_rank import wrap
from gorp.layers.targets import Treatment, family_of, resolve, treatments
from tests.models_small import tiny_llama, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


@pytest.fixture(scope="module")
def t5():
    return tiny_t5(t5_tokenizer())


@pytest.fixture(scope="module")
def llama():
    return tiny_llama(llama_tokenizer())


def test_presets_are_the_split_of_the_paper(t5, llama):
    stacks = [f"{stack}.block.{i}.layer.0" for stack in ("encoder", "decoder") for i in (0, 1)]
    assert resolve(t5, "auto", role="lora") == [f"{s}.SelfAttention.{x}" for s in stacks for x in "qv"]
    assert resolve(t5, "auto", role="full") == [
        f"decoder.block.{i}.layer.1.EncDecAttention.{x}" for i in (0, 1) for x in "qv"
    ]
    layers = [f"model.layers.{i}" for i in (0, 1)]
    assert resolve(llama, "auto", role="lora") == [f"{x}.self_attn.{p}_proj" for x in layers for p in "qv"]
    assert resolve(llama, "auto", role="full") == [f"{x}.mlp.gate_proj" for x in layers]


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_all_linear_selects_every_linear_layer_except_the_head(family, request):
    model = request.getfixturevalue(family)
    linear = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert set(resolve(model, "all-linear", role="full")) == linear - {"lm_head"}


def test_patterns_are_endings_or_regular_expressions_and_results_are_in_model_order(llama):
    both = resolve(llama, ("down_proj", r".*0\.mlp\.up_proj"), role="full")
    assert both == ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert resolve(llama, "none", role="full") == []
    with pytest.raises(ModelError):
        resolve(llama, "roj", role="full")  # not a whole component of the name


def test_the_error_for_a_wrong_pattern_suggests_the_nearest_ending(llama):
    message = r"method\.full_modules: `gate_prj` matches no linear layer of this model\. Did you mean `gate_proj`"
    with pytest.raises(ModelError, match=message):
        resolve(llama, ("gate_prj",), role="full")
    with pytest.raises(ModelError, match=r"lora\.target_modules: the pattern `\(` is not a regular expression"):
        resolve(llama, ("(",), role="lora")


def test_raises_if_matching_a_pattern_takes_too_long(llama, monkeypatch):
    monkeypatch.setattr("gorp.layers.targets.PATIENCE", 0.05)
    with pytest.raises(ModelError, match=r"with `model.*` takes too long"):
        resolve(llama, (r"(?:.|[a-z_.])*z?[0-9][0-9]\w*",), role="lora")


def test_raises_for_auto_with_an_unknown_architecture():
    with pytest.raises(ModelError, match="no target preset for model type `Sequential`"):
        family_of(nn.Sequential(nn.Linear(2, 2)))


def test_the_table_counts_the_trained_parameters():
    model = tiny_llama(llama_tokenizer()).requires_grad_(False)
    lora, full = resolve(model, ("q_proj",), role="lora"), resolve(model, ("q_proj", "gate_proj"), role="full")
    add_lora(model, lora, LoraSettings(r=4))
    wrap(model, full, rank=3)
    table = {line.pattern: line for line in treatments(model)}
    assert table.keys() == {
        "model.layers.*.self_attn.q_proj A",
        "model.layers.*.self_attn.q_proj B",
        "model.layers.*.self_attn.q_proj C",
        "model.layers.*.mlp.gate_proj C",
    }
    assert table["model.layers.*.self_attn.q_proj A"] == Treatment(
        pattern="model.layers.*.self_attn.q_proj A", count=2, shape=(4, 32), treatment="LoRA", trainable=2 * 4 * 32
    )
    assert table["model.layers.*.mlp.gate_proj C"].treatment == "core"
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(line.trainable for line in table.values()) == trainable


def test_parameters_of_a_fully_trained_model_are_listed_as_full():
    model = tiny_llama(llama_tokenizer()).requires_grad_(True)
    assert {line.treatment for line in treatments(model)} == {"full"}
    assert sum(line.trainable for line in treatments(model)) == sum(p.numel() for p in model.parameters())
    assert treatments(model.requires_grad_(False)) == []
