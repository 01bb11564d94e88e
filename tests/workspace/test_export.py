"""Versions leave the workspace as they are served, checked, and never over something else."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gorp import Workspace
from gorp.errors import CheckpointError, ConfigError, ExportError
from gorp.export.check import difference, fixed_rows, logits_of
from gorp.methods import METHODS
from gorp.models.load import ModelConfig, load_model
from gorp.progress import Progress
from gorp.storage import read_json, read_tensors
from gorp.weights.base import BaseWeights
from gorp.weights.delta import unpack_deltas
from gorp.workspace import load_config, run_sequence
from gorp.workspace import written as written_module
from tests.export.test_adapter import read_as_vllm_does
from tests.methods.per_task import PerTaskLora
from tests.workspace.project import make_project, task, tree_hash


# PEFT 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two tasks."""
    folder = tmp_path_factory.mktemp("finished")
    run_sequence(load_config(make_project(folder, family="llama")), folder / "run")
    return folder


@pytest.fixture
def project(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(finished, tmp_path / "project")
    return tmp_path / "project"


class Said(Progress):
    """Collects the lines that are printed."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def live(project, version):
    """The base model with round(W₀ + delta) of a version, and its tokenizer."""
    model, tokenizer = load_model(ModelConfig(path=str(project / "model")), "cpu")
    path = project / f"run/versions/{version}/delta.safetensors"
    BaseWeights(model).load(unpack_deltas(read_tensors(path)[0]) if path.exists() else {})
    return model, tokenizer


def answers(model, tokenizer):
    return logits_of(model, fixed_rows(tokenizer))


@pytest.mark.parametrize("name", ["v0", "v1", "v2"])
def test_a_merged_folder_answers_as_the_version(finished, tmp_path, name):
    version = Workspace(finished / "run").version(name)
    facts = version.export(tmp_path / "out")
    model, tokenizer = live(finished, name)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert difference(answers(model, tokenizer), answers(read, AutoTokenizer.from_pretrained(tmp_path / "out"))) <= 1e-5
    assert facts["check"]["difference"] <= 1e-5 and facts["check"]["prompts"] == (name != "v0")
    written = read_json(tmp_path / "out/gorp-export.json")
    assert written == {key: value for key, value in facts.items() if key != "folder"}
    assert written["version_sha256"] == version.sha256 and written["dtype"] == "float32"
    assert set(written["files"]) | {"gorp-export.json"} == set(os.listdir(tmp_path / "out"))
    assert os.listdir(tmp_path) == ["out"]
    assert str(finished) not in "".join(
        p.read_text() for p in (tmp_path / "out").iterdir() if p.suffix in (".json", ".md")
    )


def test_the_served_leak_of_an_export_is_that_of_the_rounded_weights(finished, tmp_path):
    """D = round(W₀ + delta) - round(W₀ + delta₁) against S of task one, computed with dense matrices."""
    version = Workspace(finished / "run").version("v2")
    S = read_tensors(finished / "run/versions/v1/memory.safetensors")[0]
    base, (one, _), (two, _) = (
        dict(live(finished, v)[0].named_parameters()) if v == "v0" else live(finished, v) for v in ("v0", "v1", "v2")
    )
    for dtype in ("float32", "bfloat16"):
        facts = version.export(tmp_path / dtype, dtype=dtype)
        leaks = []
        for name in S:
            to = getattr(torch, dtype)
            D = two.get_parameter(name).detach().to(to).float() - one.get_parameter(name).detach().to(to).float()
            leaks.append(((D @ S[name]).norm() / D.norm()).item())
        assert set(S) <= set(base) and facts["served_leak"].keys() == {"one"}
        assert facts["served_leak"]["one"]["weights"] == len(S)
        assert facts["served_leak"]["one"]["worst"] == pytest.approx(
            max(leaks), rel=0.3 if dtype == "float32" else 1e-3
        )
    assert facts["served_leak"]["one"]["worst"] > 1e-3
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "bfloat16")
    assert read.dtype == torch.bfloat16
    for name, parameter in read.named_parameters():
        assert torch.equal(parameter, two.get_parameter(name).to(torch.bfloat16)), name


def test_an_adapter_that_needs_no_truncation_answers_as_the_version(finished, tmp_path):
    version = Workspace(finished / "run").current()
    facts = version.export(tmp_path / "out", to="lora")
    assert "nothing is cut off" in facts["why"] and facts["error"] < 1e-6
    assert all(item["differ"] == 0 for item in facts["answers"].values()) and set(facts["answers"]) == {"one", "two"}
    assert facts["served_leak"]["one"]["worst"] < 1e-5
    model, tokenizer = live(finished, "v2")
    base = AutoModelForCausalLM.from_pretrained(finished / "model")
    peft = PeftModel.from_pretrained(base, str(tmp_path / "out"))
    assert difference(answers(model, tokenizer), answers(peft, tokenizer)) < 1e-4
    found, config = read_as_vllm_does(tmp_path / "out")
    deltas = unpack_deltas(read_tensors(finished / "run/versions/v2/delta.safetensors")[0])
    assert {f"{layer}.weight" for layer in found} == set(deltas) and config["r"] == facts["rank"]
    for name, delta in deltas.items():
        torch.testing.assert_close(found[name.removesuffix(".weight")], delta.dense(), rtol=1e-4, atol=1e-6)


def test_the_error_of_a_truncation_is_that_of_the_written_matrices(finished, tmp_path):
    facts = Workspace(finished / "run").current().export(tmp_path / "out", to="lora", rank=1, dtype="bfloat16")
    found, _ = read_as_vllm_does(tmp_path / "out")
    deltas = unpack_deltas(read_tensors(finished / "run/versions/v2/delta.safetensors")[0])
    lost = {name: (delta.dense() - found[name.removesuffix(".weight")]).norm().item() for name, delta in deltas.items()}
    for name, delta in deltas.items():
        assert facts["errors"][name.removesuffix(".weight")] == pytest.approx(lost[name] / delta.norm(), rel=1e-4)
    size = sum(delta.norm() ** 2 for delta in deltas.values()) ** 0.5
    assert facts["error"] == pytest.approx(sum(x * x for x in lost.values()) ** 0.5 / size, rel=1e-4)
    assert facts["error"] > 0.1 and facts["served_leak"]["one"]["worst"] > 1e-3
    assert "is cut off" not in (tmp_path / "out/README.md").read_text()


def test_with_an_adapter_for_each_version_rollback_is_naming_another_one(finished, tmp_path):
    facts = Workspace(finished / "run").current().export(tmp_path / "out", to="lora", each=True)
    assert list(facts["versions"]) == ["v1", "v2"]
    base = AutoModelForCausalLM.from_pretrained(finished / "model")
    peft = PeftModel.from_pretrained(base, str(tmp_path / "out/v1"), adapter_name="v1")
    peft.load_adapter(str(tmp_path / "out/v2"), adapter_name="v2")
    for name in ("v2", "v1"):
        peft.set_adapter(name)
        model, tokenizer = live(finished, name)
        assert difference(answers(model, tokenizer), answers(peft, tokenizer)) < 1e-4
        own = read_json(tmp_path / f"out/{name}/gorp-export.json")
        assert own["version"] == name and list(own["tasks"]) == ["one", "two"][: int(name[1])]
        assert set(facts["versions"][name]["answers"]) == set(own["tasks"])


def test_a_dry_run_writes_nothing_and_gives_sizes_and_ranks(finished, tmp_path):
    version = Workspace(finished / "run").current()
    facts = version.export(tmp_path / "out", dry_run=True, dtype="bfloat16")
    parameters = sum(p.numel() for p in live(finished, "v0")[0].parameters())
    assert facts["bytes"] == 2 * parameters and "files" not in facts
    each = version.export(tmp_path / "out", to="lora", each=True, dry_run=True)["versions"]
    assert not (tmp_path / "out").exists()
    written = version.export(tmp_path / "out", to="lora", rank=each["v2"]["rank"])
    assert 0 < written["files"]["adapter_model.safetensors"]["bytes"] - each["v2"]["bytes"] < 5000


def test_a_folder_that_is_not_equal_is_not_exported(finished, tmp_path, monkeypatch):
    written = written_module.write_merged

    def wrong(model, base, folder, *, code):
        with torch.no_grad():
            model.get_parameter("model.norm.weight")[0] += 1
        written(model, base, folder, code=code)

    monkeypatch.setattr(written_module, "write_merged", wrong)
    with pytest.raises(ExportError, match=r"1 weights, for example `model.norm.weight`"):
        Workspace(finished / "run").current().export(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_model_that_was_moved_is_given_by_its_folder_and_another_one_is_refused(project, tmp_path):
    (project / "model").rename(tmp_path / "moved")
    version = Workspace(project / "run").current()
    with pytest.raises(Exception, match="there is no such folder"):
        version.export(tmp_path / "out")
    facts = version.export(tmp_path / "out", base=tmp_path / "moved")
    assert facts["check"]["difference"] == 0
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    with pytest.raises(CheckpointError, match="belongs to another base model"):
        version.export(tmp_path / "out2", base=tmp_path / "other")
    with pytest.raises(ConfigError, match="there is no such folder"):
        version.export(tmp_path / "out2", base=tmp_path / "none")


def test_without_kept_rows_fixed_tokens_are_compared(project, tmp_path):
    (project / "run/eval/rows/one.json").unlink()
    kept = project / "run/eval/rows/two.json"
    kept.write_text(kept.read_text().replace("light", "night", 1))
    said = Said()
    facts = Workspace(project / "run").current().export(tmp_path / "out", to="lora", progress=said)
    assert not facts["check"]["prompts"] and facts["answers"] == {}
    assert any("one.json is missing" in line for line in said.lines)
    assert any("two.json is damaged" in line for line in said.lines)
    shutil.rmtree(project / "run/eval")
    facts = Workspace(project / "run").current().export(tmp_path / "out2")
    assert facts["scores"] is None and "## Scores" not in (tmp_path / "out2/README.md").read_text()


def test_places_and_arguments_that_are_refused(project, tmp_path):
    before = tree_hash(project)
    version = Workspace(project / "run").current()
    for out in (project / "run", project / "run/x", project / "model", project / "model/x", project):
        for force in (False, True):
            with pytest.raises(ConfigError, match=r"inside the (workspace|folder of the base)|not even with --force"):
                version.export(out, force=force)
    Workspace(project / "run").version("v0").export(tmp_path / "base")
    with pytest.raises(ConfigError, match="this is inside the folder of the base model"):
        version.export(tmp_path / "base", base=tmp_path / "base", force=True)
    refused = {
        "--to gguf: wanted merged or lora": {"to": "gguf"},
        "--dtype int8: wanted float32 or bfloat16": {"dtype": "int8"},
        "--rank is for adapters": {"rank": 8},
        "--each is for adapters": {"each": True},
        "--rank 12: vLLM takes only": {"to": "lora", "rank": 12},
        "--private is for --push-to-hub": {"private": True},
    }
    for message, options in refused.items():
        with pytest.raises(ConfigError, match=message):
            version.export(tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="v0: training has changed no weight"):
        Workspace(project / "run").version("v0").export(tmp_path / "out", to="lora")
    assert tree_hash(project) == before and not (tmp_path / "out").exists()


def test_a_damaged_version_is_refused(project, tmp_path):
    path = project / "run/versions/v1/memory.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"v1/memory\.safetensors: damaged"):
        Workspace(project / "run").current().export(tmp_path / "out")
    path = project / "run/versions/v2/delta.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"v2/delta\.safetensors: damaged"):
        Workspace(project / "run").current().export(tmp_path / "out")


def test_a_version_that_something_else_made_is_refused(project, tmp_path):
    version = Workspace(project / "run").current()
    record = dict(version.record) | {"made_by": "something", "config": {"method": {"name": "gorp"}}, "tasks": {}}
    with pytest.raises(ConfigError, match="made by `something`"):
        replace(version, record=record).export(tmp_path / "out")


def test_full_fine_tuning_can_only_be_merged(tmp_path):
    path = make_project(tmp_path / "p", family="llama", method={"name": "sequential_full"}, tasks=[task("one")])
    run_sequence(load_config(path), tmp_path / "work")
    version = Workspace(tmp_path / "work").current()
    with pytest.raises(ConfigError, match=r"cannot carry.*norm.*Use --to merged"):
        version.export(tmp_path / "out", to="lora")
    facts = version.export(tmp_path / "out", source=path)
    assert facts["check"]["difference"] == 0 and facts["served_leak"] == {}


def test_a_method_whose_result_is_not_one_model_is_refused(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "gorp", PerTaskLora)
    with pytest.raises(ConfigError, match=r"v2 was trained by `gorp`, which needs the task that a question belongs to"):
        Workspace(finished / "run").current().export(tmp_path / "out")


def test_the_same_version_gives_the_same_bytes(finished, tmp_path):
    version = Workspace(finished / "run").current()
    for name in ("a", "b"):
        version.export(tmp_path / name / "out", to="lora")
    assert tree_hash(tmp_path / "a") == tree_hash(tmp_path / "b")
    assert json.loads((tmp_path / "a/out/adapter_config.json").read_text())["base_model_name_or_path"] == "model"
