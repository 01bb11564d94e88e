"""Every method refuses weights that it cannot train before changing any, and names the weights that it leaves out."""

import re

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from gorp.errors import ConfigError, ModelError
from gorp.layers.lora import LoraSettings
from gorp.layers.targets import left_out_line, resolve, untouched_line
from gorp.layers.trainable import check_rank, check_trainable, left_out, linear_layers
from gorp.methods import METHODS
from tests.models_small import tiny_gpt2, tiny_llama, tiny_mamba, tiny_moe, tiny_t5
from tests.runs import fresh, rows, train
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


WITH_LORA = [name for name, method in METHODS.items() if method.uses_lora]


def refused(message: str, error: type[Exception] = ModelError):
    return pytest.raises(error, match=re.escape(message))


class Scaled(nn.Linear):
    """A subclass of `nn.Linear` that does not compute W x + b."""

    def forward(self, x):
        return 2 * super().forward(x), x


def two_layers(second: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), second or nn.Linear(4, 3))


@pytest.mark.parametrize("name", WITH_LORA)
def test_every_method_refuses_a_tied_head_before_training(name):
    model = tiny_llama(llama_tokenizer())
    with refused("`lm_head` cannot be trained: it shares its weight with `model.embed_tokens.weight`"):
        fresh(name, model, lora=LoraSettings(target_modules=(".*",)))


def test_an_untied_head_can_be_trained():
    model = tiny_llama(llama_tokenizer(), tie_word_embeddings=False)
    check_trainable(model, ["lm_head"])


def test_a_weight_shared_by_two_layers_is_refused_under_both_names():
    model = two_layers()
    model[1].weight = model[0].weight
    for name in "01":
        with refused(f"`{name}` cannot be trained: it shares its weight with `{1 - int(name)}.weight`"):
            check_trainable(model, [name])
    check_trainable(model, None)  # if all parameters are trained, sharing is no problem


def test_a_layer_under_two_names_is_refused_under_both():
    model = two_layers()
    model.again = model[1]
    assert list(linear_layers(model)) == ["0", "1", "again"]
    for name in ("1", "again"):
        with refused(f"`{name}` cannot be trained: it shares its weight with"):
            check_trainable(model, [name])


def test_quantized_weights_are_refused():
    model = two_layers()
    model[1].weight = nn.Parameter(torch.zeros(6, 1, dtype=torch.uint8), requires_grad=False)  # packed, as for 4 bits
    assert resolve(model, "all-linear", role="lora") == ["0", "1"]  # not left out silently
    for layers in (["1"], None):
        with refused("cannot be trained: its weight is quantized (uint8). Load the original model before quantization"):
            check_trainable(model, layers)
    check_trainable(model, ["0"])


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_refuses_a_model_loaded_quantized(name):
    model = tiny_llama(llama_tokenizer())
    model.is_quantized = True
    with refused("the model is loaded quantized"):
        fresh(name, model)


def test_a_layer_that_computes_something_else_is_left_out_or_refused():
    model = two_layers(Scaled(4, 3))
    assert resolve(model, "all-linear", role="lora") == ["0"]
    with refused("`1` cannot be trained: it is a `Scaled`, which computes something else than W x + b"):
        check_trainable(model, ["1"])


class OwnForward(nn.Linear):
    """Computes W x + b in a forward method of its own, like Falcon's layers."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


class Rounded(nn.Linear):
    """Rounds its weight to three values, like BitNet's layers."""

    def forward(self, x):
        size = self.weight.abs().mean()
        return nn.functional.linear(x, (self.weight / size).round().clamp(-1, 1) * size, self.bias)


def test_a_layer_with_its_own_forward_method_is_accepted_if_it_computes_w_x_plus_b():
    check_trainable(two_layers(OwnForward(4, 3)), ["0", "1"])
    check_trainable(two_layers(OwnForward(4, 3)).bfloat16(), ["0", "1"])
    check_trainable(two_layers(OwnForward(4, 3)).to("meta"), ["0", "1"])
    with refused("`1` cannot be trained: it is a `Rounded`, which computes something else than W x + b"):
        check_trainable(two_layers(Rounded(4, 3)), ["1"])


def test_a_weight_computed_from_other_parameters_is_refused():
    model = two_layers()
    nn.utils.parametrizations.weight_norm(model[1])
    with refused("`1` cannot be trained: its weight is computed from others"):
        check_trainable(model, ["1"])


def test_a_name_that_is_not_a_linear_layer_is_refused():
    with refused("`model.norm` cannot be trained: the model has no linear layer of this name"):
        check_trainable(tiny_llama(llama_tokenizer()), ["model.norm"])


def test_a_rank_above_that_of_every_target_is_refused():
    model = tiny_llama(llama_tokenizer())
    layers = resolve(model, "all-linear", role="lora")  # 16 x 32 to 48 x 32
    check_rank(model, layers, 32, "lora.r")
    with refused("lora.r is 33, but no targeted weight has a rank above 32 (`model.layers.0", ConfigError):
        fresh("incremental_lora", model, lora=LoraSettings(r=33, target_modules="all-linear"))
    with refused("method.rank is 4096", ConfigError):
        fresh("gorp", model, rank=4096)
    with refused("`model.layers.0.self_attn.k_proj` is 16 x 32). Set it to a value from 1 to 16.", ConfigError):
        check_rank(model, ["model.layers.0.self_attn.k_proj"], 17, "lora.r")


@pytest.mark.parametrize("role", ["lora", "full"])
def test_the_error_names_the_kind_of_a_layer_that_is_not_linear(role):
    model = tiny_gpt2(llama_tokenizer())
    with refused("`all-linear` finds no layer: this model's layers are Conv1D, which gorp does not train"):
        resolve(model, "all-linear", role=role)
    with refused("`transformer.h.0.attn.c_attn` is a Conv1D, which gorp does not train"):
        resolve(model, ("c_attn",), role=role)
    with refused("`model.layers.1.mlp.experts.gate_up_proj` is a parameter, which gorp does not train"):
        resolve(tiny_moe(llama_tokenizer()), ("gate_up_proj",), role=role)


def test_fused_experts_that_all_linear_leaves_out_are_named():
    model = tiny_moe(llama_tokenizer())
    groups = {group.reason: group for group in left_out(model)}
    assert groups.keys() == {"experts in one tensor", "in `DeepseekV3TopkRouter`"}
    experts = groups["experts in one tensor"]
    assert experts.patterns == ("model.layers.*.mlp.experts.gate_up_proj", "model.layers.*.mlp.experts.down_proj")
    numbers = 4 * 16 * 32 * 3
    assert experts.share == numbers / sum(p.numel() for p in model.parameters())
    line = left_out_line(model, "none", "all-linear")
    assert line is not None and f"experts in one tensor {100 * experts.share:.1f} %" in line
    assert left_out_line(model, ("q_a_proj",)) is None  # the user chose the layers


def test_weights_read_by_state_space_kernels_are_named_and_refused():
    model = tiny_mamba(llama_tokenizer())
    assert resolve(model, "all-linear", role="lora") == [f"backbone.layers.{i}.mixer.in_proj" for i in (0, 1)]
    reasons = {group.reason for group in left_out(model)}
    assert reasons == {"read by the kernels of a state space", "convolution", "in `MambaMixer`"}
    with refused("`backbone.layers.0.mixer.out_proj` cannot be trained: the kernels"):
        fresh("incremental_lora", model, lora=LoraSettings(target_modules=("out_proj",)))


@pytest.mark.parametrize("build", ["t5", "llama"])
def test_nothing_is_left_out_of_a_dense_model(build):
    model = tiny_t5(t5_tokenizer()) if build == "t5" else tiny_llama(llama_tokenizer())
    assert left_out(model) == [] and left_out_line(model, "all-linear") is None


@pytest.mark.parametrize("name", ["gorp", "incremental_lora"])
def test_shared_experts_and_dense_layers_beside_experts_are_trained(name, tmp_path):
    """Given the whole model, PEFT would put these pairs on the fused experts."""
    model = tiny_moe(llama_tokenizer())
    options = {"full_modules": "all-linear"} if name == "gorp" else {}
    method = fresh(name, model, lora=LoraSettings(r=4, target_modules="all-linear"), **options)
    train(model, method, 1, tmp_path, max_steps=2)
    moved = {name for name, delta in method.deltas.items() if delta.norm() > 0}
    assert moved == {f"{name}.weight" for name in resolve(model, "all-linear", role="lora")}
    assert {"model.layers.1.mlp.shared_experts.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"} <= moved


class HalfUsed(LlamaForCausalLM):
    """A Llama whose last layer is never called."""

    def forward(self, *args, **kwargs):
        self.model.config.num_hidden_layers = 1
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("name", ["gorp", "incremental_lora", "sequential_full"])
def test_weights_that_never_had_a_gradient_are_named(name, tmp_path):
    model = tiny_llama(llama_tokenizer())
    model.__class__ = HalfUsed
    lora = LoraSettings(r=4, target_modules=("q_proj", "up_proj"))
    method = fresh(name, model, lora=lora) if METHODS[name].uses_lora else fresh(name, model)
    messages: list[str] = []
    train(model, method, 1, tmp_path, max_steps=2, data=rows(1, 8), say=messages.append)
    (line,) = [line for line in messages if "no gradient ever reached" in line]
    weights = {"gorp": 3, "incremental_lora": 2, "sequential_full": 9}[name]
    assert line.startswith(f"task1: no gradient ever reached {weights} of the ")
    assert "`model.layers.*.self_attn.q_proj.weight`" in line


def test_no_message_if_all_weights_had_a_gradient(tmp_path):
    model = tiny_llama(llama_tokenizer())
    messages: list[str] = []
    train(model, fresh("gorp", model), 1, tmp_path, max_steps=2, data=rows(1, 8), say=messages.append)
    assert not any("no gradient" in line for line in messages)
    assert untouched_line([], 3) is None
