"""An adapter folder read as vLLM reads it, and as PEFT reads it, is the delta."""

import json

import pytest
import torch
from safetensors.torch import load_file

from gorp.errors import ConfigError, ExportError
from gorp.export.adapter import check_linear, check_matrices, read_pairs, target_names, write_adapter
from gorp.export.check import difference, fixed_rows, logits_of, with_adapter
from gorp.export.lowrank import RANKS, pair, spectrum
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta
from tests.models_small import tiny_llama, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


LAYERS = {
    "t5": ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.1.layer.1.EncDecAttention.v"],
    "llama": ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"],
}


def read_as_vllm_does(folder):
    """Return module -> scale B A, from the two files alone, with the rules of a server that knows one r per adapter."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] in RANKS
    assert not config["modules_to_save"] and config["bias"] == "none"
    assert not config["use_dora"] and not config["use_rslora"]
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    assert isinstance(config["target_modules"], list) and all(map(str.isprintable, config["target_modules"]))
    tensors = load_file(folder / "adapter_model.safetensors")
    found, scaling = {}, config["lora_alpha"] / config["r"]
    for key in tensors:
        prefix, _, rest = key.partition("base_model.model.")
        module, dot, kind = rest.rpartition(".lora_")
        assert not prefix and dot and kind in ("A.weight", "B.weight"), key
        down = tensors[f"base_model.model.{module}.lora_A.weight"]
        up = tensors[f"base_model.model.{module}.lora_B.weight"]
        assert down.shape[0] == up.shape[1] == config["r"]
        found[module] = scaling * (up.float() @ down.float())
    return found, config


def made(family, folder, rank=8):
    """A model, its deltas of ranks 2 and 5, and the adapter of the deltas in `folder`."""
    tokenizer = t5_tokenizer() if family == "t5" else llama_tokenizer()
    model = tiny_t5(tokenizer) if family == "t5" else tiny_llama(tokenizer, initializer_range=0.2)
    deltas = {}
    for number, layer in enumerate(LAYERS[family]):
        name, g = f"{layer}.weight", torch.Generator().manual_seed(number)
        m, n = model.get_parameter(name).shape
        deltas[name] = WeightDelta(torch.Size([m, n]))
        deltas[name].append(*(0.3 * torch.randn(side, 2 + 3 * number, generator=g) for side in (m, n)))
    pairs = {name: pair(spectrum(delta), rank, torch.float32) for name, delta in deltas.items()}
    targets = target_names(LAYERS[family], model)
    write_adapter(folder, pairs, targets=targets, base="base", encoder_decoder=family == "t5")
    return model, tokenizer, deltas


@pytest.mark.parametrize("family", LAYERS)
def test_a_server_that_reads_only_the_two_files_gets_the_delta_of_each_layer_and_no_other(family, tmp_path):
    _, _, deltas = made(family, tmp_path)
    found, config = read_as_vllm_does(tmp_path)
    assert {f"{layer}.weight" for layer in found} == set(deltas)
    for layer, matrix in found.items():
        torch.testing.assert_close(matrix, deltas[f"{layer}.weight"].dense(), rtol=1e-4, atol=1e-5)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert set(read_pairs(tmp_path)) == set(deltas)


@pytest.mark.parametrize("family", LAYERS)
def test_base_and_adapter_in_peft_answer_as_the_merged_model_and_the_base_comes_back_unchanged(family, tmp_path):
    model, tokenizer, deltas = made(family, tmp_path)
    rows, weights = fixed_rows(tokenizer), BaseWeights(model)
    base = logits_of(model, rows)
    weights.load(deltas)
    merged = logits_of(model, rows)
    weights.load({})
    with with_adapter(model, tmp_path, list(deltas)) as peft:
        assert difference(merged, logits_of(peft, rows)) < 1e-5 < 0.01 < difference(merged, base)
    assert difference(base, logits_of(model, rows)) == 0 and weights.is_plain(model)


def test_an_adapter_that_peft_would_put_elsewhere_is_found(tmp_path):
    model, _, deltas = made("llama", tmp_path)
    with pytest.raises(ExportError, match="other layers than were trained"):
        with with_adapter(model, tmp_path, list(deltas)[:1]):
            pass
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 16}))
    with pytest.raises(ExportError, match="another pair"):
        with with_adapter(model, tmp_path, list(deltas)):
            pass
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["q_proj", "down_proj"]}))
    with pytest.raises(ExportError, match="other layers than were trained"):
        with with_adapter(model, tmp_path, list(deltas)):
            pass
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_targets_are_short_names_where_these_select_nothing_else():
    model = tiny_llama(llama_tokenizer())
    every = [f"model.layers.{i}.self_attn.{end}" for i in (0, 1) for end in ("q_proj", "v_proj")]
    assert target_names(every, model) == ["q_proj", "v_proj"]
    assert target_names(every[:3], model) == sorted(every[:3])


def test_the_same_pairs_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made("llama", tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_what_a_pair_cannot_carry_is_refused_by_name():
    model = tiny_llama(llama_tokenizer())
    norm, embedding = "model.norm.weight", "model.embed_tokens.weight"
    with pytest.raises(ConfigError, match=rf"2 weights .*`{norm}`, `x\.bias`\. Use --to merged\."):
        check_matrices({norm: WeightDelta(torch.Size([32])), "x.bias": WeightDelta(torch.Size([8]))})
    check_matrices({embedding: WeightDelta(torch.Size([400, 32]))})
    with pytest.raises(ConfigError, match=f"1 weights .*`{embedding}`"):
        check_linear(model, [embedding, "model.layers.0.mlp.up_proj.weight"])
