"""A new LoRA pair does not change the output, is float32 or wider, and can be removed completely."""

import pytest
import torch

from gorp.errors import ConfigError
from gorp.layers.lora import LoraSettings, add_lora, remove_lora
from tests.models_small import tiny_llama
from tests.tokenizers_small import llama_tokenizer


LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.gate_proj"]


@pytest.fixture
def model():
    return tiny_llama(llama_tokenizer()).requires_grad_(False)


@pytest.fixture
def ids():
    return torch.randint(5, 300, (2, 9))


@torch.no_grad()
def test_new_pairs_do_not_change_the_output_and_are_the_only_trained_parameters(model, ids):
    before = model(ids).logits
    pairs = add_lora(model, LAYERS, LoraSettings(r=4, lora_alpha=8))
    assert torch.equal(model(ids).logits, before)
    assert list(pairs) == [f"{name}.weight" for name in LAYERS]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(p) for pair in pairs.values() for p in (pair.down, pair.up)}
    assert all(pair.scale == 2.0 and pair.down.shape == (4, 32) for pair in pairs.values())


@torch.no_grad()
def test_the_delta_of_a_pair_is_its_effect_on_the_output(model, ids):
    for name, pair in add_lora(model, LAYERS, LoraSettings(r=4, lora_alpha=8)).items():
        pair.up.normal_()
        assert not pair.delta().is_dense
        layer = model.get_submodule(name.removesuffix(".weight"))
        x = torch.randn(3, 32)
        torch.testing.assert_close(layer(x), layer.get_base_layer()(x) + x @ pair.delta().dense().mT)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_factors_are_float32_or_wider(model, ids, dtype, expected):
    for pair in add_lora(model.to(dtype), LAYERS, LoraSettings()).values():
        assert pair.down.dtype == pair.up.dtype == expected
    assert model(ids).logits.dtype == dtype


@torch.no_grad()
def test_removing_pairs_restores_the_model(model, ids):
    before, names, attributes = model(ids).logits, list(model.state_dict()), set(vars(model))
    layers = [model.get_submodule(name) for name in LAYERS]
    for pair in add_lora(model, LAYERS, LoraSettings()).values():
        pair.up.normal_()
    remove_lora(model)
    assert [model.get_submodule(name) for name in LAYERS] == layers
    assert torch.equal(model(ids).logits, before)
    assert list(model.state_dict()) == names
    assert set(vars(model)) == attributes


def test_new_pairs_depend_only_on_the_random_state(model):
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(add_lora(model, LAYERS, LoraSettings())[f"{LAYERS[0]}.weight"].down.clone())
        remove_lora(model)
    assert torch.equal(*draws)


@pytest.mark.parametrize("invalid", [{"r": 0}, {"lora_dropout": 1.0}, {"lora_dropout": -0.1}])
def test_raises_for_settings_out_of_range(invalid):
    with pytest.raises(ConfigError, match=rf"lora\.{next(iter(invalid))} is"):
        LoraSettings(**invalid)
