"""`gorp diff`: what it says of two versions equals what their files, the model and the records say."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from gorp.errors import CheckpointError, ConfigError
from gorp.evaluation import TaskScore
from gorp.storage import read_tensors
from gorp.weights.delta import unpack_deltas
from gorp.workspace import Workspace, load_config, run_sequence, status
from gorp.workspace.diff import diff
from gorp.workspace.scores import Scores
from tests.command import gorp
from tests.workspace.project import branched, make_project, tree_hash


METHOD = {"name": "gorp", "rank": 4, "refresh_every": 3, "budget": 0.25}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """v1 (one) -> v2 (two), and from v1 again -> v3 (three); the budget is reached, so directions are released."""
    return branched(tmp_path_factory.mktemp("diff"), method=METHOD, gate={"enabled": False})


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "p")
    return tmp_path / "p" / "run"


def deltas(run, version):
    """Return the deltas of a version as dense matrices in float64."""
    path = run / "versions" / version / "delta.safetensors"
    return {name: delta.dense().double() for name, delta in unpack_deltas(read_tensors(path)[0]).items()}


def protected(run, version):
    return {name: basis.double() for name, basis in load_file(run / f"versions/{version}/memory.safetensors").items()}


def test_by_default_the_current_version_is_compared_with_the_one_it_was_trained_from(finished):
    found = diff(finished / "run")
    assert [found[side]["version"] for side in ("old", "new")] == ["v1", "v3"]
    assert (found["ancestor"], found["left"], found["gained"]) == ("v1", [], ["v3"])
    assert found == diff(finished / "run", "v1", "v3") == diff(finished / "run", "v1")


@pytest.mark.parametrize(("old", "new"), [("v1", "v2"), ("v2", "v3"), ("v2", "v1"), ("v0", "v3")])
def test_the_weights_are_those_of_the_slow_reference(finished, old, new):
    run, found = finished / "run", diff(finished / "run", old, new)["weights"]
    before = deltas(run, old) if old != "v0" else {}
    after, base = deltas(run, new), load_file(finished / "model/model.safetensors")
    bases = protected(run, old) if old != "v0" else {}
    assert set(found) == set(before) | set(after)
    for name, facts in found.items():
        change = after[name] - before.get(name, 0.0)
        weight = base[name].double() + before.get(name, 0.0)
        assert facts["norm"] == pytest.approx(change.norm().item(), rel=1e-5)
        assert facts["relative"] == pytest.approx((change.norm() / weight.norm()).item(), rel=1e-5)
        if name not in bases:
            assert facts["leak"] is facts["cosines"] is None
            continue
        _, sigma, right = torch.linalg.svd(change, full_matrices=False)
        k = facts["directions"]
        assert facts["held"] == pytest.approx((sigma[:k].square().sum() / sigma.square().sum()).item(), rel=1e-5)
        cosines = torch.linalg.svdvals(right[:k] @ bases[name]).clamp(max=1)
        assert facts["cosines"] == pytest.approx(cosines.tolist(), abs=1e-3)
        # The leak, another way: a mean of the squared cosines of the directions to S, weighted by their use.
        shares = (bases[name].mT @ right.mT).square().sum(dim=0)
        again = ((sigma.square() * shares).sum() / sigma.square().sum()).sqrt().item()
        assert facts["leak"] == pytest.approx(again, abs=1e-6)
        assert facts["leak"] <= facts["cosines"][0] + 1e-3


def test_along_a_lineage_the_leak_and_the_capacity_are_those_that_training_recorded(finished):
    run = finished / "run"
    record, parent = (json.loads((run / f"versions/{v}/version.json").read_text()) for v in ("v3", "v1"))
    found = diff(run)
    for name, facts in found["weights"].items():
        told = record["weights"][name]
        assert facts["leak"] == pytest.approx(told["leak"], abs=1e-6) and facts["leak"] < 1e-5
        assert facts["capacity"] == [parent["weights"][name]["capacity"], told["capacity"]]
        assert facts["released"] == told["released"]
    together = found["together"]
    assert together["leak"] == pytest.approx(record["leak"], abs=1e-6)
    assert (together["released"], together["released_energy"]) == (
        record["released"],
        pytest.approx(record["released_energy"]),
    )
    assert together["released"] > 0
    assert together["norm"] == pytest.approx(math.hypot(*(facts["norm"] for facts in found["weights"].values())))


def test_versions_of_two_branches_are_compared_and_the_change_acts_on_what_the_other_protects(finished):
    found = diff(finished / "run", "v2", "v3")
    assert (found["ancestor"], found["left"], found["gained"]) == ("v1", ["v2"], ["v3"])
    assert found["together"]["leak"] > 0.01 and found["together"]["cosine"] > 0.1
    assert list(found["tasks"]) == ["one", "three", "two"]
    keys = [item["key"] for item in found["settings"]]
    assert keys == ["tasks.two", "tasks.three"]


def test_backwards_the_change_is_the_same_size_and_scores_differ_the_other_way(run):
    answer(run, "v1", [True] * 90 + [False] * 10)
    answer(run, "v3", [False] * 12 + [True] * 80 + [False] * 8)
    there, back = diff(run, "v1", "v3"), diff(run, "v3", "v1")
    for name, facts in there["weights"].items():
        assert facts["norm"] == pytest.approx(back["weights"][name]["norm"])
    one, other = there["tasks"]["one"], back["tasks"]["one"]
    assert one["difference"] == -other["difference"] and one["lost"] == other["won"]
    assert one["interval"] == pytest.approx([-end for end in reversed(other["interval"])])


def answer(run, version, right, *, conditions="same"):
    samples = [
        {"index": i, "prompt": f"row {i}", "expected": "yes", "answer": "yes" if ok else "no", "correct": ok}
        for i, ok in enumerate(right)
    ]
    score = 100 * sum(right) / len(right)
    found = TaskScore(task="one", metric="exact_match", score=score, rows=len(right), samples=samples)
    Scores(run / "eval").add(version, found, f"key {version}", conditions)


def test_scores_have_their_difference_its_interval_and_the_changed_answers(run):
    answer(run, "v1", [True] * 90 + [False] * 10)
    answer(run, "v3", [False] * 12 + [True] * 80 + [False] * 8)
    facts = diff(run)["tasks"]["one"]
    assert (facts["old"], facts["new"], facts["difference"], facts["rows"]) == (90.0, 80.0, pytest.approx(-10.0), 100)
    assert (facts["lost"], facts["won"]) == (12, 2)
    assert [row["lost"] for row in facts["flipped"]] == [True] * 12 + [False] * 2
    low, high = facts["interval"]
    assert low < -10.0 < high < 0  # 12 against 2 is not chance


def test_scores_equal_those_of_status(finished):
    found, matrix = diff(finished / "run"), status(finished / "run")["matrix"]
    for position, name in enumerate(matrix["tasks"]):
        assert [found["tasks"][name][side] for side in ("old", "new")] == [
            matrix["R"][1][position],
            matrix["R"][2][position],
        ]


def test_answers_that_cannot_be_compared_are_named_and_the_rest_is_there(run):
    answer(run, "v1", [True] * 20)
    answer(run, "v3", [True] * 20, conditions="other")
    found = diff(run)
    assert "scored on other rows" in found["tasks"]["one"]["problem"] and found["tasks"]["one"]["difference"] is None
    assert found["tasks"]["three"]["problem"] is None and found["together"]["changed"] == 14


def test_nothing_is_written_and_no_model_is_loaded(run, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.modeling_utils.PreTrainedModel.from_pretrained", refuse)
    before = tree_hash(run)
    diff(run)
    assert tree_hash(run) == before


def test_without_the_base_model_there_is_no_relative_change_and_it_says_why(run):
    path = run.parent / "model/model.safetensors"
    shutil.copytree(run.parent / "model", run.parent / "kept")
    tensors = load_file(path)
    from safetensors.torch import save_file

    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path)
    found = diff(run)
    assert "not those that the version was trained from" in found["base"] and found["together"]["relative"] is None
    shutil.rmtree(run.parent / "model")
    found = diff(run)
    assert "neither a folder nor in the cache" in found["base"] and found["together"]["norm"] > 0


def test_a_damaged_file_is_refused_and_named(run):
    path = run / "versions/v3/delta.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"v3/delta\.safetensors: damaged or changed"):
        diff(run)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("v1", "v1", "both versions are v1"), (None, "v0", "no version before it"), ("v9", None, "no version `v9`")],
)
def test_impossible_versions_are_refused(finished, old, new, message):
    with pytest.raises(ConfigError, match=message):
        diff(finished / "run", old, new)


def test_on_the_command_line_with_the_yaml_and_as_json(finished):
    yaml, run = finished / "run.yaml", finished / "run"
    done = gorp("diff", yaml, "v2", "v3")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("v2 (two) -> v3 (three), on two branches from v1\n")
    assert "14 of 14 weights differ by" in done.stdout and "(10 of 14, those that changed most)" in done.stdout
    assert "tasks.two: " in done.stdout and "largest cosine" in done.stdout
    as_json = gorp("diff", run, "v2", "v3", "--json")
    assert json.loads(as_json.stdout) == json.loads(json.dumps(diff(run, "v2", "v3")))
    assert gorp("diff", run, "v3", "v0").stdout.startswith("v3 (three) -> v0 (base model), back, 2 versions\n")
    assert gorp("diff", run, "v1", "v1").exit_code == 2


def test_a_method_without_protected_directions_has_no_leak(tmp_path):
    path = make_project(tmp_path, method={"name": "sequential_lora"}, gate={"enabled": False})
    run_sequence(load_config(path), tmp_path / "run")
    found = diff(tmp_path / "run")
    assert found["together"]["leak"] is found["together"]["cosine"] is None and found["together"]["changed"] > 0
    assert Workspace(tmp_path / "run").current().name == "v2"
    done = gorp("diff", tmp_path / "run")
    assert done.exit_code == 0 and "leak:" not in done.stdout
