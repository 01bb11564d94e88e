"""A merged folder has round(W₀ + delta) in every weight, and answers as the live model, for every kind of model."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from gorp.errors import ExportError
from gorp.export.check import check_merged, difference, fixed_rows, logits_of
from gorp.export.merged import merge, weight_digests, write_merged
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta
from tests.models_small import tiny_llama, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


def tiny_qwen2(tokenizer):
    """A random Qwen2 with biases on queries, keys and values, and an untied head."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


KINDS = {
    "t5": lambda: (tiny_t5(t5_tokenizer()), t5_tokenizer()),
    "llama, tied head": lambda: (tiny_llama(llama_tokenizer()), llama_tokenizer()),
    "llama, head of its own": lambda: (tiny_llama(llama_tokenizer(), tie_word_embeddings=False), llama_tokenizer()),
    "qwen2, biases": lambda: (tiny_qwen2(llama_tokenizer()), llama_tokenizer()),
}


def changes(model):
    """A delta of every parameter: factored for matrices of layers, dense for all others."""
    deltas = {}
    for number, (name, parameter) in enumerate(model.named_parameters()):
        g = torch.Generator().manual_seed(number)
        if parameter.dim() == 2 and number % 2:
            deltas[name] = WeightDelta(parameter.shape)
            left, right = (0.1 * torch.randn(side, 3, generator=g) for side in parameter.shape)
            deltas[name].append(left, right)
        else:
            deltas[name] = WeightDelta.of(0.1 * torch.randn(parameter.shape, generator=g))
    return deltas


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    """The base model in a folder, and a function that loads it."""
    model, tokenizer = KINDS[request.param]()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return model, tokenizer, tmp_path


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_weight_is_the_rounded_sum_and_the_folder_answers_as_the_live_model(kind, dtype):
    model, tokenizer, folder = kind
    deltas = changes(model)
    slow = {name: (p.detach() + deltas[name].dense()).to(dtype or p.dtype) for name, p in model.named_parameters()}
    weights, rows = BaseWeights(model), fixed_rows(tokenizer)
    weights.load(deltas)
    live = logits_of(model, rows)
    merge(model, weights, deltas, dtype)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), slow[name], rtol=0 if dtype else 1e-6, atol=0 if dtype else 1e-7)
    (folder / "out").mkdir()
    write_merged(model, folder / "base", folder / "out")
    written = load_file(folder / "out/model.safetensors")
    assert all(torch.equal(written[name], p) for name, p in model.named_parameters() if name in written)
    assert {name for name, _ in model.named_parameters()} - set(written) == set()
    assert difference(live, logits_of(model, rows)) == (0 if dtype is None else pytest.approx(0, abs=0.1))
    asked = {"encoder_decoder": model.config.is_encoder_decoder, "device": model.device}
    assert check_merged(folder / "out", weight_digests(model), rows, logits_of(model, rows), **asked) <= 1e-5
    for path in (folder / "base").glob("tokenizer*"):
        assert (folder / "out" / path.name).read_bytes() == path.read_bytes()


def test_a_narrow_model_is_exported_wide_without_its_rounding():
    """In a bfloat16 model W₀ is bfloat16; a float32 export has W₀ + delta, not the rounded weight that was served."""
    model = tiny_llama(llama_tokenizer()).to(torch.bfloat16)
    deltas, first = changes(model), {name: p.detach().clone() for name, p in model.named_parameters()}
    weights = BaseWeights(model)
    weights.load(deltas)  # as it is served
    merge(model, weights, deltas, torch.float32)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), first[name].float() + deltas[name].dense(), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_what_the_folders_need_is_transformers_alone(tmp_path):
    for number, build in enumerate(KINDS.values()):
        model, tokenizer = build()
        base, out = tmp_path / f"base{number}", tmp_path / f"out{number}"
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
        merge(model, BaseWeights(model), changes(model), None)
        out.mkdir()
        write_merged(model, base, out)
        logits = logits_of(model, fixed_rows(tokenizer)[:1])
        save_file({"rows": torch.tensor(fixed_rows(tokenizer)[:1]), "live": logits[0]}, out / "live.st")
    code = """
import sys
sys.modules["gorp"] = None  # an import of it fails
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
for folder in sys.argv[1:]:
    kind = AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(folder).is_encoder_decoder else AutoModelForCausalLM
    model, tokenizer = kind.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    kept = load_file(folder + "/live.st")
    more = {}
    if model.config.is_encoder_decoder:
        start = torch.full((1, 1), model.config.decoder_start_token_id)
        more["decoder_input_ids"] = torch.cat([start, kept["rows"][:, :15]], dim=1)
    with torch.no_grad():
        logits = model(input_ids=kept["rows"], **more).logits[0, -16:]
    assert (logits - kept["live"]).abs().max() <= 1e-5 * kept["live"].abs().max()
    assert tokenizer("Is the light red?").input_ids
print("equal")
"""
    folders = [str(tmp_path / f"out{number}") for number in range(len(KINDS))]
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr


def test_a_weight_that_comes_back_changed_in_one_bit_is_found(tmp_path):
    tokenizer = llama_tokenizer()
    model, rows = tiny_llama(tokenizer), fixed_rows(tokenizer)
    model.save_pretrained(tmp_path)
    digests, logits = weight_digests(model), logits_of(model, rows)
    asked = {"encoder_decoder": False, "device": model.device}
    assert check_merged(tmp_path, digests, rows, logits, **asked) == 0
    with pytest.raises(ExportError, match="answers differently from the live model"):
        check_merged(tmp_path, digests, rows, [row + 0.01 * row.abs().max() for row in logits], **asked)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.gate_proj.weight"
    tensors[name].view(torch.int32)[0, 0] ^= 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=f"1 weights, for example `{name}`, come back"):
        check_merged(tmp_path, digests, rows, logits, **asked)


def test_a_nan_in_any_row_is_a_difference():
    same, broken = [torch.ones(2, 3), torch.ones(2, 3)], [torch.ones(2, 3), torch.full((2, 3), float("nan"))]
    assert difference(same, same) == 0.0
    assert difference(same, broken) != difference(same, broken)  # NaN
