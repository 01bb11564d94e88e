"""Predictions from shapes alone, held to the same step on real tensors."""

import functools
import json
import re
import shutil

import pytest
import torch
from typer.testing import CliRunner

from gorp.cli import app
from gorp.errors import GorpError, ModelError
from gorp.estimate import Device, Ledger, SavedTensors, predict
from gorp.estimate.shapes import batch_of, forward_and_backward
from gorp.layers.lora import LoraSettings, add_lora
from gorp.layers.targets import resolve
from gorp.methods import METHODS, build_method
from gorp.methods.base import TaskContext
from gorp.models.load import ModelConfig, load_model, skeleton
from gorp.workspace import load_config
from tests.models_small import tiny_moe
from tests.tokenizers_small import llama_tokenizer
from tests.workspace.project import make_project


DEVICE = Device(name="given", flops=1e12, bandwidth=1e11)

MARGIN = 0.02
"""Of activation memory: attention on real tensors saves a few numbers a row that its shape function does not."""


@pytest.fixture(scope="module", params=["t5", "llama"])
def project(request, tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"), family=request.param)


@functools.cache
def predicted(path, **training):
    """Estimates for the project, with other training arguments."""
    return predict(config_of(path, **training), DEVICE)


def config_of(path, **training):
    """The project's configuration, with other training arguments."""
    config = load_config(path)
    training = {"per_device_train_batch_size": 4, **training}
    return type(config)(**{**vars(config), "training": training})


def prepared(config, way):
    """The real model, made trainable in one of the three ways."""
    model, _ = load_model(config.model, "cpu")
    model.train().config.use_cache = False
    model.requires_grad_(way == "full")
    if way == "lora":
        add_lora(model, resolve(model, "all-linear", role="lora"), config.lora)
    if way == "gorp":
        method = build_method(config.method, config.options, config.lora)
        method.setup(model)
        for name in resolve(model, "all-linear", role="lora"):  # an earlier task, as `predict` takes it
            method.memory.extend(f"{name}.weight", torch.eye(model.get_submodule(name).in_features)[:2])
        rows = batch_of(model, rows=4, prompt=48, answer=8)  # read for the rows of A, which are fixed in this task
        method.begin_task(model, TaskContext(name="", index=2, seed=0, num_steps=9, batches=lambda *_: iter([rows])))
        assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_A" in name)
    return model


@pytest.mark.parametrize("way", ["gorp", "lora", "full"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_activations_are_those_of_a_real_step(project, way, autocast):
    config = config_of(project, bf16=autocast is not None)
    model = prepared(config, way)
    batch = batch_of(model, rows=4, prompt=48, answer=8)
    with SavedTensors(model) as saved:
        forward_and_backward(model, batch, autocast=autocast)
    assert predicted(project, bf16=autocast is not None)[way].activations == pytest.approx(saved.bytes, rel=MARGIN)


def test_gradients_and_optimizer_are_exact(project):
    config = config_of(project)
    estimates = predicted(project, bf16=False)
    for way in ("gorp", "lora", "full"):
        model, estimate = prepared(config, way), estimates[way]
        trained = [p for p in model.parameters() if p.requires_grad]
        size = sum(p.numel() for p in trained)
        assert (estimate.trainable, estimate.gradients, estimate.optimizer) == (size, 4 * size, 8 * size)
        assert estimate.weights + estimate.trained == pytest.approx(
            4 * sum(p.numel() for p in model.parameters()), rel=0.01
        )
        assert estimate.peak > estimate.weights + estimate.optimizer + estimate.activations


def test_checkpointing_trades_memory_for_arithmetic(project):
    plain, checkpointed = (
        predicted(project, **on)["gorp"] for on in ({"bf16": False}, {"gradient_checkpointing": True})
    )
    assert checkpointed.activations < plain.activations
    assert checkpointed.flops > plain.flops


def test_shapes_alone_are_enough(project, tmp_path):
    (tmp_path / "model").mkdir()
    for part in ("run.yaml", "model/config.json"):
        shutil.copy(project.parent / part, tmp_path / part)
    config = load_config(tmp_path / "run.yaml")
    assert all(p.is_meta for p in skeleton(config.model).parameters())
    assert predict(config_of(tmp_path / "run.yaml"), DEVICE) == predicted(project, bf16=False)


@pytest.mark.parametrize("number", range(6))
def test_shapes_are_refused_where_the_model_would_be(project, tmp_path, number):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(project.parent / "model/config.json", folder)

    def change(**values):
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | values))

    spoil, message = [
        (lambda: (folder / "adapter_config.json").write_text("{}"), "it contains a LoRA adapter"),
        (lambda: (folder / "config.json").unlink(), "model: no config.json"),
        (lambda: change(quantization_config={"quant_method": "gptq", "bits": 4}), "its weights are quantized (gptq)"),
        (lambda: change(vocab_size=-1), "no model can be made from its config.json"),
        (lambda: shutil.rmtree(folder), "there is no such folder, and it is not a hub id either"),
        (lambda: folder.rename(tmp_path / "modle") and folder.write_text(""), "such folder, and it is not a hub id"),
    ][number]
    spoil()
    with pytest.raises(ModelError, match=re.escape(message)):
        skeleton(ModelConfig(path=str(folder)))


def test_of_a_hub_model_its_description_alone_is_fetched(project, tmp_path, monkeypatch):
    shutil.copy(project.parent / "model/config.json", tmp_path)
    asked = []
    monkeypatch.setattr(
        "gorp.models.load.snapshot_download", lambda path, **options: asked.append((path, options)) or str(tmp_path)
    )
    assert skeleton(ModelConfig(path="org/name", revision="v1"))
    assert asked == [("org/name", {"revision": "v1", "allow_patterns": ["config.json", "adapter_config.json"]})]


NEEDS_VALUES = {"replay": "replay cannot be estimated", "migu": "`t5` with the method `migu` cannot be estimated"}
"""Methods that keep rows, or look at which tokens are padding, in a step."""


@pytest.mark.slow
def test_every_method_is_estimated_or_refused_by_name(tmp_path):
    for name in METHODS:
        config = load_config(make_project(tmp_path / name, method={"name": name}))
        if name in NEEDS_VALUES:
            with pytest.raises(GorpError, match=NEEDS_VALUES[name]):
                predict(config, DEVICE)
            continue
        estimates = predict(config, DEVICE)
        assert list(estimates) == [name, "lora", "full"]
        ours = estimates[name]
        assert ours.trainable > 0 and ours.kept > 0
        assert ours.peak > ours.weights + ours.optimizer + ours.protection + ours.activations


def test_a_loss_term_costs_what_its_forward_pass_costs(tmp_path):
    """`lwf` runs the model once more than `incremental_lora` does, without a backward pass."""
    plain, distilled = (
        load_config(make_project(tmp_path / name, method={"name": name})) for name in ("incremental_lora", "lwf")
    )
    model, _ = load_model(plain.model, "cpu")
    add_lora(model, resolve(model, plain.lora.targets, role="lora"), plain.lora)
    encoding, rows = plain.encoding, plain.training["per_device_train_batch_size"]
    batch = batch_of(model, rows=rows, prompt=encoding.max_prompt_tokens, answer=encoding.max_completion_tokens)
    with torch.no_grad(), Ledger() as ledger:
        model(**batch)
    one, two = predict(plain, DEVICE)["incremental_lora"], predict(distilled, DEVICE)["lwf"]
    assert two.flops - one.flops == ledger.flops > 0
    assert two.seconds > one.seconds


def test_penalties_hold_their_anchors_on_the_device(tmp_path):
    lora = {"r": 4, "target_modules": "all-linear"}
    for name, factor in (("ewc", 2), ("olora", None)):
        path = make_project(tmp_path / name, method={"name": name}, lora=lora)
        model, method = skeleton(load_config(path).model), build_method(name, None, LoraSettings(**lora))
        method.setup(model)
        shapes = [model.get_submodule(layer).weight.shape for layer in method.layers]
        adapter, rows = 4 * sum(4 * (m + n) for m, n in shapes), 4 * sum(4 * n for _, n in shapes)
        wanted = rows if factor is None else factor * adapter  # A of the task before; F and the anchor of A and B
        assert predict(load_config(path), DEVICE)[name].protection == wanted


def test_protected_full_has_its_weights_in_float32_and_holds_s_and_the_weights_at_the_start(tmp_path):
    for dtype in ("float32", "bfloat16"):
        model = {"path": "model", "dtype": dtype}
        path = make_project(tmp_path / dtype, family="llama", model=model, method={"name": "protected_full"})
        config = load_config(path)
        estimates = predict(config, DEVICE)
        ours, full = estimates["protected_full"], estimates["full"]
        layers = resolve(skeleton(config.model), "all-linear", role="full")
        shapes = [skeleton(config.model).get_submodule(layer).weight.shape for layer in layers]
        size, basis = sum(m * n for m, n in shapes), sum(4 * n * int(0.75 * n) for _, n in shapes)
        assert (ours.trainable, ours.gradients, ours.optimizer) == (size, 4 * size, 8 * size)
        assert ours.protection == basis + 4 * size
        assert ours.main_memory == size * (4 if dtype == "float32" else 2)
        assert ours.weights - full.weights == (0 if dtype == "float32" else 2 * size)


def test_command(tmp_path):
    project = make_project(tmp_path)
    done = CliRunner().invoke(app, ["estimate", str(project), "--tflops", "100", "--gbps", "1000", "--json"])
    assert done.exit_code == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"device", "gorp", "lora", "full"}
    table = CliRunner().invoke(app, ["estimate", str(project), "--tflops", "100", "--gbps", "1000"])
    assert "peak memory" in table.stdout and "kept after the last task" in table.stdout


def test_half_a_device_is_refused(tmp_path):
    project = make_project(tmp_path)
    assert CliRunner().invoke(app, ["estimate", str(project), "--tflops", "100"]).exit_code == 2


def test_a_mixture_is_refused_because_its_step_depends_on_the_data(tmp_path):
    path = make_project(tmp_path, family="llama", lora={"target_modules": "all-linear"})
    tiny_moe(llama_tokenizer()).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=r"`deepseek_v3` cannot be estimated: its router decides"):
        predict(load_config(path), DEVICE)
