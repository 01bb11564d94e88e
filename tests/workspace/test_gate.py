"""The gate: the verdict on a version from the recorded answers of two, and evidence that can be recomputed."""

import json
import subprocess
import sys

import pytest

from gorp.errors import CheckpointError, ConfigError
from gorp.evaluation import TaskScore
from gorp.workspace import Workspace
from gorp.workspace.gate import gate
from gorp.workspace.promote import promote
from gorp.workspace.scores import Scores
from gorp.workspace.seal import SEAL, sealed
from gorp.workspace.verify import verify
from tests.command import gorp
from tests.workspace.project import tree_hash


@pytest.fixture
def run(project):
    return project / "run"


def answered(run, version, right, *, task="one", conditions="same"):
    """Record answers of a version: right or wrong for each row."""
    samples = [
        {"index": i, "prompt": f"row {i}", "expected": "yes", "answer": "yes" if ok else "no", "correct": ok}
        for i, ok in enumerate(right)
    ]
    score = TaskScore(
        task=task, metric="exact_match", score=100 * sum(right) / len(right), rows=len(right), samples=samples
    )
    Scores(run / "eval").add(version, score, f"key {version}", conditions)


def test_a_version_that_lost_many_answers_is_held_and_the_lost_rows_come_first(run):
    answered(run, "v1", [True] * 90 + [False] * 10)
    answered(run, "v2", [False] * 12 + [True] * 80 + [False] * 8)
    found = gate(run)
    facts = found["tasks"]["one"]
    assert found["verdict"] == facts["verdict"] == "hold"
    assert (facts["lost"], facts["won"], facts["old"], facts["new"]) == (12, 2, 90.0, 80.0)
    assert facts["drop"] == pytest.approx(10.0)
    assert facts["p_any_loss"] == pytest.approx(106 / 2**14)  # P(X >= 12), X ~ Bin(14, 1/2): (91 + 14 + 1) / 2¹⁴
    flipped = found["flipped"]["one"]
    assert [row["lost"] for row in flipped] == [True] * 12 + [False] * 2
    assert flipped[0] == {
        "index": 0, "prompt": "row 0", "expected": "yes", "old": "yes", "new": "no", "lost": True
    }  # fmt: skip


def test_equal_answers_to_enough_rows_ship_and_to_few_are_inconclusive(run):
    for version in ("v1", "v2"):
        answered(run, version, [True] * 150)
    assert gate(run)["verdict"] == "ship"
    for version in ("v1", "v2"):
        answered(run, version, [True] * 40)
    facts = gate(run)["tasks"]["one"]
    assert (facts["verdict"], facts["rows_needed"]) == ("inconclusive", 149)
    assert gate(run, margin=10.0)["verdict"] == "ship"


def test_only_tasks_that_the_old_version_had_learned_count(run):
    assert list(gate(run)["tasks"]) == ["one"]
    assert gate(run, version="v1") | {"path": ""} == gate(run, version="v1", against="v0") | {"path": ""}
    assert gate(run, version="v1")["verdict"] == "ship"  # before its first task there was nothing to lose


def test_a_task_that_the_new_version_has_not_learned_counts_too(run):
    answered(run, "v1", [True] * 20 + [False] * 80, task="two")
    answered(run, "v2", [True] * 100, task="two")
    for version in ("v1", "v2"):
        answered(run, version, [True] * 150)
    found = gate(run, version="v1", against="v2")  # as a version on a branch without task two
    assert found["verdict"] == found["tasks"]["two"]["verdict"] == "hold"


def test_a_task_that_the_old_version_answered_all_wrong_has_nothing_to_lose(run):
    answered(run, "v1", [False] * 200)
    answered(run, "v2", [False] * 190 + [True] * 10)
    facts = gate(run)["tasks"]["one"]
    assert facts["verdict"] == "ship" and facts["nothing_to_lose"] and facts["won"] == 10


def test_evidence_is_verified_and_a_changed_answer_or_number_is_found(run):
    answered(run, "v1", [True] * 90 + [False] * 10)
    answered(run, "v2", [True] * 88 + [False] * 12)
    path = run / "eval/gate/v2-v1.json"
    found = gate(run)
    assert found["path"] == str(path) and verify(path)["tasks"] == found["tasks"]
    kept = path.read_text()
    path.write_text(kept.replace('"drop": 2.0', '"drop": 0.0'))
    with pytest.raises(CheckpointError, match="damaged or changed"):
        verify(path)
    path.write_text(kept)
    answered(run, "v2", [True] * 100)  # scored again since
    with pytest.raises(CheckpointError, match="is not what the files of the workspace give now"):
        verify(path)


def test_each_task_may_have_its_own_margin_and_the_yaml_names_them(run):
    for task in ("one", "two"):
        answered(run, "v1", [True] * 100, task=task)
        answered(run, "v2", [False] * 12 + [True] * 88, task=task)
    found = gate(run, version="v1", against="v2", margin={"one": 2.0, "two": 25.0})
    assert found["margins"] == {"one": 2.0, "two": 25.0} and verify(run / "eval/gate/v1-v2.json")["margins"] == {
        "one": 2.0,
        "two": 25.0,
    }
    assert gate(run)["tasks"]["one"]["verdict"] == "hold"
    path = run.with_suffix(".yaml")  # beside the workspace
    plain = path.read_text().replace("enabled: false", "MARGINS")
    path.write_text(plain.replace("MARGINS", "margins: {one: 25}"))
    assert gate(run)["margins"] == {"one": 25.0} and gate(run)["verdict"] == "ship"
    path.write_text(plain.replace("MARGINS", "margins: {oen: 25}"))
    with pytest.raises(
        ConfigError, match=r"gate.margins: no task `oen` in `tasks:`; there are one, two. Did you mean `one`"
    ):
        gate(run)
    path.write_text(plain.replace("MARGINS", "margin: 25").replace("name: gorp", "name: ewc"))  # another run's YAML
    assert gate(run)["margins"] == {"one": 2.0}  # as in the last `gorp train`


def test_evidence_of_the_time_when_all_tasks_had_one_margin_is_verified(run):
    answered(run, "v1", [True] * 90 + [False] * 10)
    answered(run, "v2", [True] * 88 + [False] * 12)
    gate(run, margin=3.0)
    path = run / "eval/gate/v2-v1.json"
    kept = json.loads(path.read_text())
    assert kept.pop("margins") == {"one": 3.0}
    del kept[SEAL]
    path.write_text(json.dumps(sealed(kept | {"margin": 3.0})))
    assert verify(path)["tasks"] == kept["tasks"]
    path.write_text(json.dumps(sealed(kept | {"margin": 4.0})))
    with pytest.raises(CheckpointError, match="is not what the files of the workspace give now"):
        verify(path)


def test_answers_that_cannot_be_compared_are_refused(run):
    answered(run, "v1", [True] * 20)
    answered(run, "v2", [True] * 20, conditions="other")
    with pytest.raises(CheckpointError, match="scored on other rows, or with other settings"):
        gate(run)
    samples = run / "eval/samples/v2-one.jsonl"
    samples.write_text(samples.read_text().replace('"correct": true', '"correct": false', 1))
    with pytest.raises(CheckpointError, match=r"v2-one\.jsonl: damaged or changed"):
        gate(run)
    samples.unlink()
    with pytest.raises(CheckpointError, match=r"v2 has no recorded answers on one\. `gorp eval --version v2`"):
        gate(run)


@pytest.mark.parametrize("options", [{"margin": 0.0}, {"margin": 100.0}, {"version": "v0"}, {"version": "v9"}])
def test_impossible_arguments_are_refused(run, options):
    before = tree_hash(run)
    with pytest.raises(ConfigError):
        gate(run, **options)
    assert tree_hash(run) == before


def test_on_the_command_line_the_exit_code_is_the_verdict(run):
    answered(run, "v1", [True] * 100)
    for right, code, word in (
        ([False] * 20 + [True] * 80, 3, "HOLD"),
        ([False] * 1 + [True] * 99, 4, "INCONCLUSIVE"),
        ([True] * 100, 4, "INCONCLUSIVE"),
    ):
        answered(run, "v2", right)
        done = gorp("gate", run)
        assert done.exit_code == code, done.output
        assert done.stdout.startswith(f"v2 against v1: {word}")
    held = gorp("gate", run, "--margin", "5", "--json")
    assert held.exit_code == 0 and json.loads(held.stdout)["verdict"] == "ship"
    assert gorp("gate", run, "--margin", "5", "--verify").exit_code == 0
    before = tree_hash(run)
    assert gorp("gate", run, "--dry-run").exit_code == 4 and tree_hash(run) == before
    assert gorp("gate", run, "--version", "v7").exit_code == 2
    assert Workspace(run).current().name == "v2"


def test_the_gate_imports_neither_transformers_nor_data_sets(run):
    code = "import sys; from gorp.workspace.gate import gate; gate(__import__('pathlib').Path(sys.argv[1]))"
    heavy = "{'transformers', 'datasets', 'peft'}"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(sorted({heavy} & set(sys.modules)))", str(run)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def certain(run, version, nll, probability, *, right=None):
    """Record answers of a version to task one with both numbers of each row."""
    right = [True] * len(nll) if right is None else right
    answered(run, version, right)
    path = run / f"eval/samples/{version}-one.jsonl"
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    for sample, a, b in zip(samples, nll, probability, strict=True):
        sample |= {"nll": a, "probability": b}
    score = TaskScore(task="one", metric="exact_match", score=100.0, rows=len(nll), samples=samples)
    Scores(run / "eval").add(version, score, f"key {version}", "same")


def test_likelihood_and_calibration_are_reported_and_do_not_decide(run):
    certain(run, "v1", [0.1, 0.2] * 75, [0.9] * 150)
    certain(run, "v2", [0.5, 0.6] * 75, [0.5] * 150)
    found = gate(run)
    assert found["verdict"] == "ship"  # no answer changed
    facts = found["certainty"]["one"]
    assert facts["nll"] == {
        "rows": 150, "old": pytest.approx(0.15), "new": pytest.approx(0.55),
        "difference": pytest.approx(0.4), "interval": [pytest.approx(0.4)] * 2,
    }  # fmt: skip
    assert facts["ece"] == {"rows": 150, "old": pytest.approx(0.1), "new": pytest.approx(0.5)}
    assert "the right answers are less likely than before: +0.40 nats" in gorp("gate", run).stdout
    assert verify(run / "eval/gate/v2-v1.json")["certainty"] == found["certainty"]


def test_answers_without_these_numbers_are_shown_as_absent(run):
    answered(run, "v1", [True] * 150)
    certain(run, "v2", [0.5] * 150, [None] * 150)
    found = gate(run)
    assert found["certainty"]["one"] == {"nll": None, "ece": None} and found["verdict"] == "ship"
    shown = gorp("gate", run, "--explain")
    assert shown.exit_code == 0 and "NLL" in shown.stdout and "–" in shown.stdout and "less likely" not in shown.stdout


def test_evidence_has_the_leak_that_the_new_version_recorded_and_verify_computes_it(run):
    found = gate(run)
    recorded = json.loads((run / "versions/v2/version.json").read_text())["leak_earlier"]
    assert list(found["leaks"]) == list(recorded) == ["one"]
    assert found["leaks"]["one"]["weights"] == recorded["one"]["weights"] > 0
    assert found["leaks"]["one"]["worst"] == pytest.approx(recorded["one"]["worst"], rel=1e-3, abs=1e-6)
    path = run / "eval/gate/v2-v1.json"
    verify(path)
    kept = json.loads(path.read_text())
    del kept[SEAL]
    kept["leaks"]["one"]["worst"] = 0.5
    path.write_text(json.dumps(sealed(kept)))
    with pytest.raises(CheckpointError, match="`leaks` is not what the files"):
        verify(path)
    for key in ("leaks", "certainty", "noise"):  # as evidence of the time before
        del kept[key]
    path.write_text(json.dumps(sealed(kept)))
    verify(path)


def test_noise_is_zero_on_a_cpu_and_leaves_the_verdict(run):
    plain, found = gate(run), gate(run, noise=True)
    assert found["noise"] == {"one": {"rows": 6, "differing": 0, "flipped": 0, "standard_error": 0.0, "margin": 2.0}}
    assert found | {"noise": None} == plain
    assert verify(run / "eval/gate/v2-v1.json")["noise"] == found["noise"]
    with pytest.raises(ConfigError, match="--base is needed only"):
        gate(run, base=run)
    with pytest.raises(ConfigError, match="there is no such folder"):
        gate(run, noise=True, base=run / "nowhere")
    assert gorp("gate", run, "--noise", "--verify").exit_code == 2


def test_answers_that_change_in_other_batches_widen_the_margin(run, monkeypatch):
    answered(run, "v1", [True] * 100)
    answered(run, "v2", [False] * 8 + [True] * 92)
    assert gate(run)["verdict"] == "hold"
    counts = {"one": {"rows": 100, "differing": 40, "flipped": 36}}
    monkeypatch.setattr("gorp.workspace.noise.count_noise", lambda *_, **__: counts)
    found = gate(run, noise=True)
    assert found["noise"]["one"] == counts["one"] | {"standard_error": 6.0, "margin": 2.0}  # 100 √36 / 100
    assert found["margins"] == {"one": 6.0} and found["verdict"] == found["tasks"]["one"]["verdict"] == "inconclusive"
    monkeypatch.undo()
    path = run / "eval/gate/v2-v1.json"
    assert verify(path)["margins"] == {"one": 6.0}  # from the counts, without a model
    line = "noise: 36 of 100 answers turn right or wrong in other batches, so the margin is 6.0 points instead of 2"
    assert line in gorp("gate", run, "--verify").stdout
    kept = json.loads(path.read_text())
    del kept[SEAL]
    kept["noise"]["one"]["flipped"] = 0
    path.write_text(json.dumps(sealed(kept)))
    with pytest.raises(CheckpointError, match="is not what the files"):
        verify(path)


def test_noise_counts_the_answers_that_are_not_the_recorded_ones(run):
    scores = Scores(run / "eval")
    cell, samples = scores.cells["v2"]["one"], scores.answers("v2", "one")
    other = {"true": "false", "false": "true"}
    for place, sample in enumerate(samples):
        if place < 2:  # recorded as the other label, so that it turns right or wrong
            sample |= {"answer": other[sample["answer"]], "correct": not sample["correct"]}
        elif place == 2:  # another text, as right or wrong as before
            sample["answer"] += " "
    score = TaskScore(task="one", metric=cell["metric"], score=cell["score"], rows=6, samples=samples)
    scores.add("v2", score, cell["key"], cell["conditions"])
    facts = gate(run, noise=True)["noise"]["one"]
    assert (facts["rows"], facts["differing"], facts["flipped"]) == (6, 3, 2)
    assert facts["standard_error"] == pytest.approx(100 * 2**0.5 / 6)


def test_noise_is_refused_if_the_rows_were_scored_with_other_settings(run):
    answered(run, "v1", [True] * 6)
    answered(run, "v2", [True] * 6)
    with pytest.raises(CheckpointError, match="with other settings or another device than now"):
        gate(run, noise=True)


def test_text_of_data_reaches_the_terminal_without_control_characters(run):
    answered(run, "v1", [True] * 100)
    answered(run, "v2", [True] * 100)
    path = run / "eval/samples/v2-one.jsonl"
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    samples[0] |= {"answer": "\x1b[31mno\x07", "correct": False}
    score = TaskScore(task="one", metric="exact_match", score=99.0, rows=100, samples=samples)
    Scores(run / "eval").add("v2", score, "key", "same")
    done = gorp("gate", run)
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout


def counted(run, monkeypatch, flipped=36):
    """Judge 100 answers, 8 of them lost, with counts of noise: a margin of 6 points for 36 flips."""
    answered(run, "v1", [True] * 100)
    answered(run, "v2", [False] * 8 + [True] * 92)
    counts = {"one": {"rows": 100, "differing": 40, "flipped": flipped}}
    with monkeypatch.context() as patch:
        patch.setattr("gorp.workspace.noise.count_noise", lambda *_, **__: counts)
        return gate(run, noise=True)


def test_counts_of_noise_are_kept_when_the_evidence_is_made_again(run, monkeypatch):
    found = counted(run, monkeypatch)
    again = gate(run)
    assert again["noise"] == found["noise"] and again["margins"] == {"one": 6.0}  # 100 √36 / 100
    assert again["verdict"] == "inconclusive" and again["notes"] == [
        "noise: as `gorp gate --noise` counted it before; the answers are still the same"
    ]
    assert verify(run / "eval/gate/v2-v1.json")["noise"] == found["noise"]
    assert gate(run, margin=7.0)["margins"] == {"one": 7.0} and gate(run, dry_run=True)["margins"] == {"one": 6.0}
    assert "as `gorp gate --noise` counted it before" in gorp("gate", run).stdout


def test_promote_judges_with_the_counts_of_noise_that_were_kept(run, monkeypatch):
    counted(run, monkeypatch)
    store = Workspace(run)
    with store.writing():
        store.move(store.version("v1"), event="rollback", before="v2")
    found = promote(run)
    assert found["moved"] and found["accepted"] and found["gate"]["margins"] == {"one": 6.0}
    assert verify(run / "eval/gate/v2-v1.json")["margins"] == {"one": 6.0}


def test_counts_of_noise_of_other_answers_are_not_used(run, monkeypatch):
    counted(run, monkeypatch)
    answered(run, "v2", [False] * 9 + [True] * 91)
    found = gate(run)
    assert found["noise"] is None and found["margins"] == {"one": 2.0} and found["verdict"] == "hold"
    assert "is not used, because answers were given again since" in found["notes"][0]
    assert gate(run)["notes"] == []  # the evidence is of the new answers now, and has no counts


def test_counts_of_noise_in_damaged_evidence_are_not_used(run, monkeypatch):
    counted(run, monkeypatch)
    path = run / "eval/gate/v2-v1.json"
    path.write_text(path.read_text().replace('"flipped": 36', '"flipped": 99'))
    assert gate(run)["noise"] is None
