"""The commands on a folder of gorp.Protection: status shows it, export writes it, the others say what to use."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from gorp import Protection, Workspace
from gorp.storage import read_tensors
from gorp.weights.base import BaseWeights
from gorp.weights.delta import unpack_deltas
from tests.attach.test_start import fit, loader
from tests.command import gorp
from tests.runs import tiny, tokenizer
from tests.workspace.project import make_project, tree_hash


# PEFT 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """October from an adapter without rows, November trained in a Trainer; the base model beside the folder."""
    place = tmp_path_factory.mktemp("protected")
    tiny("llama").save_pretrained(place / "base")
    tokenizer("llama").save_pretrained(place / "base")
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load(place / "base"), config).save_pretrained(place / "adapter")
    root, model = place / "protected", load(place / "base")
    Protection.from_adapter(root, model, place / "adapter", task="october", evaluate=lambda m: {"october": 0.75})
    protection = Protection(root, task="november", evaluate=lambda m: {"october": 0.5, "november": 0.9})
    fit("llama", model, 2, place / "out", [protection], epochs=1)
    protection.save()
    return place


def test_diff_compares_the_weights_and_shows_the_scores_in_their_own_unit(folder):
    found = json.loads(gorp("diff", folder / "protected", "--json").stdout)
    assert [found[side]["version"] for side in ("old", "new")] == ["v1", "v2"]
    assert found["together"]["leak"] == pytest.approx(record(folder, "v2")["leak"], abs=1e-6)
    assert (found["tasks"]["october"]["old"], found["tasks"]["october"]["new"]) == (0.75, 0.5)
    shown = gorp("diff", folder / "protected")
    assert shown.exit_code == 0 and "not relative to the weights: the base model of a protection" in shown.stdout
    assert "october, november: answers not compared: a protection folder" in shown.stdout
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["october", "0.75", "0.5", *"––––"] in lines and ["november", "–", "0.9", *"––––"] in lines


def record(folder, version):
    return json.loads((folder / f"protected/versions/{version}/version.json").read_text())


def test_report_needs_a_workspace_and_says_what_to_use(folder, tmp_path):
    refused = gorp("report", folder / "protected", "--out", tmp_path / "r.html")
    assert refused.exit_code == 2 and "`gorp report` cannot use it" in refused.stderr
    assert not (tmp_path / "r.html").exists()


def test_status_shows_tasks_scores_versions_and_what_is_protected(folder):
    shown = gorp("status", folder / "protected")
    assert shown.exit_code == 0
    lines = [line.split() for line in shown.output.splitlines()]
    assert ["october", "–", "–"] in lines  # no rows were read, so no coverage
    assert ["october", "0.75", "0.5"] in lines and ["november", "–", "0.9"] in lines
    assert "v2: 2 tasks learned with gorp" in shown.output and "../base" in shown.output
    assert "october: begun from an adapter without rows" in " ".join(shown.output.split())
    assert not {"pending", "unknown", "YAML"} & set(shown.output.split())
    state = json.loads(gorp("status", folder / "protected", "--json").stdout)
    assert state["made_by"] == "protection" and state["config"] is None and state["pending"] == []
    assert state["scores"] == {"v1": {"october": 0.75}, "v2": {"october": 0.5, "november": 0.9}}
    assert state["versions"][2]["leak"] <= 1e-6
    assert gorp("status", folder / "protected", "--explain").exit_code == 0


def test_a_yaml_beside_the_folder_is_not_its_yaml(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "protected.yaml").write_text("model: {path: other}\n")
    state = json.loads(gorp("status", copy / "protected", "--json").stdout)
    assert state["config"] is None and state["problem"] is None


def test_train_and_eval_are_refused_with_a_sentence_and_change_nothing(folder, tmp_path):
    root, before = folder / "protected", tree_hash(folder / "protected")
    project = make_project(tmp_path)
    for arguments in (
        ["train", root], ["train", project, "--workspace", root], ["train", project, "--workspace", root, "--dry-run"],
        ["eval", root],
    ):  # fmt: skip
        refused = gorp(*arguments)
        assert refused.exit_code == 2, refused.output
        assert "a protection folder, made by gorp.Protection" in refused.stderr
        assert f"so `gorp {arguments[0]}` cannot use it" in refused.stderr
        assert f"Protection('{root}')" in refused.stderr
    assert tree_hash(root) == before
    missing = gorp("train", tmp_path)
    assert missing.exit_code == 2 and "this is a folder; wanted the YAML" in missing.stderr


def served(root, base):
    """The base model with the changes of the current version in its weights."""
    BaseWeights(base).load(unpack_deltas(read_tensors(Workspace(root).current().folder / "delta.safetensors")[0]))
    return base


def test_export_writes_the_merged_model_and_one_adapter(folder, tmp_path):
    root = folder / "protected"
    expected = served(root, load(folder / "base"))
    done = gorp("export", root, tmp_path / "merged")
    assert done.exit_code == 0, done.stderr
    for (name, p), other in zip(load(tmp_path / "merged").named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, other), name
    done = gorp("export", root, tmp_path / "lora", "--to", "lora")
    assert done.exit_code == 0, done.stderr
    adapted = PeftModel.from_pretrained(load(folder / "base"), tmp_path / "lora")
    (batch, *_) = loader("llama", 1)
    with torch.no_grad():
        torch.testing.assert_close(adapted(**batch).logits, expected(**batch).logits, rtol=0, atol=1e-4)


def test_the_base_model_is_found_after_a_move_and_must_be_the_same(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "moved")
    assert Workspace(copy / "protected").current().record["base"]["path"] == "../base"
    shutil.move(copy / "base", tmp_path / "elsewhere")
    lost = gorp("export", copy / "protected", tmp_path / "a")
    assert lost.exit_code == 2 and "is no longer there. Give its folder with --base" in lost.stderr
    found = gorp("export", copy / "protected", tmp_path / "a", "--base", tmp_path / "elsewhere")
    assert found.exit_code == 0, found.stderr
    merged = gorp("export", copy / "protected", tmp_path / "b", "--base", tmp_path / "a")
    assert merged.exit_code == 1 and "a merged model of an earlier task is not it" in merged.stderr
    assert not (tmp_path / "b").exists()


def test_a_base_model_that_was_made_in_memory_needs_base(folder, tmp_path):
    adapter = folder / "adapter"
    Protection.from_adapter(tmp_path / "p", tiny("llama"), adapter, task="october")
    refused = gorp("export", tmp_path / "p", tmp_path / "out")
    assert refused.exit_code == 2 and "made in memory" in refused.stderr and "--base" in refused.stderr
    done = gorp("export", tmp_path / "p", tmp_path / "out", "--base", folder / "base")
    assert done.exit_code == 0, done.stderr


def test_rollback_goes_back_to_the_first_task(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "moved")
    done = gorp("rollback", copy / "protected")
    assert done.exit_code == 0, done.stderr
    assert Protection(copy / "protected").folder.learned == ["october"]
