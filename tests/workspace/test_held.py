"""The gate inside a run: what ships becomes current, what is held is kept aside, the next task starts without it."""

import json
import shutil
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gorp.cli import app
from gorp.errors import CheckpointError, ConfigError
from gorp.evaluation.paired import Verdict
from gorp.progress import Progress
from gorp.workspace import Workspace, load_config, plan, run_sequence, status
from gorp.workspace import run as run_module
from gorp.workspace.held import fits, order_of_learning
from gorp.workspace.verify import verify
from gorp.workspace.version import VERDICTS, read_version
from tests.workspace.planted import KEPT, LOST, UNSURE, plant
from tests.workspace.project import make_project, task, tree_hash, weights, write_config, write_rows


ON = {"margin": 2.0}
QUICK = {
    "method": {"name": "sequential_lora"},
    "lora": {"r": 2, "target_modules": ["q"]},
    "training": {"per_device_train_batch_size": 12, "save_strategy": "no", "learning_rate": 5e-3},
}
"""Two steps for a task: what is learned does not matter where the answers are planted."""
TASKS = [task("one"), task("two"), task("three")]


class Stop(Exception):
    """Raised where the process is to end."""


class Said(Progress):
    """Collects the lines that are printed, and the verdicts that are shown."""

    def __init__(self):
        self.lines, self.found = [], []

    def say(self, line):
        self.lines.append(line)

    def gate(self, found):
        self.found.append(found)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A project that has learned task one (v1); the rows of two and three are there."""
    folder = tmp_path_factory.mktemp("held")
    path = make_project(folder, tasks=[task("one")], gate=ON, **QUICK)
    write_rows(folder / "three.jsonl", 3, 24)
    write_rows(folder / "three_eval.jsonl", 3, 6)
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, lambda version, name: KEPT)
        run_sequence(load_config(path), folder / "run")
    return folder


@pytest.fixture(scope="module")
def holding(begun, tmp_path_factory):
    """The same project after task two was trained (v2) and held; three is pending."""
    folder = tmp_path_factory.mktemp("holding") / "p"
    shutil.copytree(begun, folder)
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, on("v2", "one", LOST))
        assert train(folder).held is not None
    return folder


@pytest.fixture
def project(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "p")
    return tmp_path / "p"


@pytest.fixture
def held(holding, tmp_path, monkeypatch):
    """A copy of the project in which two is held; other versions answer all rows right."""
    plant(monkeypatch, on("v2", "one", LOST))
    shutil.copytree(holding, tmp_path / "p")
    return tmp_path / "p"


def train(project, *, tasks=TASKS, gate=ON, restart=False, progress=None, **changes):
    """Run `gorp train` in Python; returns its result."""
    path = write_config(project, tasks=tasks, gate=gate, **(QUICK | changes))
    return run_sequence(load_config(path), project / "run", restart=restart, progress=progress)


def on(version, name, answers):
    """Answers that are all right, except those of one version to one task."""
    return lambda v, n: answers if (v, n) == (version, name) else KEPT


def test_a_version_that_ships_becomes_current_and_its_evidence_can_be_verified(project, monkeypatch):
    plant(monkeypatch, lambda version, name: KEPT)
    said = Said()
    result = train(project, progress=said)
    store = Workspace(project / "run")
    assert result.held is None and store.current().name == "v3"
    assert [found["verdict"] for found in said.found] == ["ship", "ship"]
    assert store.version("v1").record["gate"] is None  # there was nothing to lose
    assert store.version("v3").record["gate"] == {
        "verdict": "ship",
        "against": "v2",
        "accepted": True,
        "margins": {"one": 2.0, "two": 2.0},
        "tasks": {"one": "ship", "two": "ship"},
        "guard": None,
    }
    for name in ("v2-v1", "v3-v2"):
        assert verify(project / f"run/eval/gate/{name}.json")["verdict"] == "ship"
    assert status(project / "run")["held"] == {}


def test_a_version_that_lost_is_kept_aside_and_the_run_stops(project, monkeypatch):
    plant(monkeypatch, on("v2", "one", LOST))
    said = Said()
    result = train(project, progress=said)
    store = Workspace(project / "run")
    assert result.held["verdict"] == "hold" and result.held["tasks"]["one"]["lost"] == 20
    assert store.current().name == "v1" and [v.name for v in store.versions()] == ["v0", "v1", "v2"]
    assert (project / "run/CURRENT").read_text().split()[0] == "v1" and store.remarks() == []
    assert not (project / "run/run/two").exists() and store.unsettled() == []
    assert verify(project / "run/eval/gate/v2-v1.json")["verdict"] == "hold"
    assert said.found == [result.held] and "two: held, because v2 lost points on one" in said.lines[-1]
    state = status(project / "run")
    facts = {"version": "v2", "verdict": "hold", "against": "v1", "tasks": ["one"], "guard": False}
    assert state["held"] == {"two": facts}
    assert (state["current"], state["pending"]) == ("v1", ["three"])


def test_after_a_hold_the_next_task_starts_from_the_good_version(held):
    result = train(held)
    store, third = Workspace(held / "run"), Workspace(held / "run").current()
    assert result.held is None
    assert (third.name, third.record["parent"], third.contains) == ("v3", "v1", ["one", "three"])
    assert result.matrix.tasks == ["one", "three", "two"] == status(store.root)["matrix"]["tasks"]
    assert status(store.root)["measures"].keys() == third.record["metrics"]["measures"].keys()
    assert status(store.root)["measures"] == third.record["metrics"]["measures"]
    before = tree_hash(store.root)
    train(held)
    assert tree_hash(store.root) == before


def test_the_weights_after_a_hold_are_those_of_a_run_without_the_held_task(held, begun, tmp_path):
    train(held)
    shutil.copytree(begun, tmp_path / "without")
    train(tmp_path / "without", tasks=[task("one"), task("three")])
    assert Workspace(held / "run").current().name == "v3"
    assert weights(held / "run", "v3") == weights(tmp_path / "without/run", "v2")


@pytest.mark.slow
def test_with_gorp_too_the_weights_after_a_hold_are_those_of_a_run_without_the_held_task(begun, tmp_path, monkeypatch):
    plant(monkeypatch, on("v2", "one", LOST))
    for name in ("with", "without"):
        shutil.copytree(begun, tmp_path / name, ignore=shutil.ignore_patterns("run"))
    gorp = {"method": {"name": "gorp", "rank": 4}, "lora": {"r": 2}}
    assert train(tmp_path / "with", **gorp).held is not None
    assert train(tmp_path / "with", **gorp).held is None
    plant(monkeypatch, lambda version, name: KEPT)
    train(tmp_path / "without", tasks=[task("one"), task("three")], **gorp)
    assert Workspace(tmp_path / "with/run").current().name == "v3"
    assert weights(tmp_path / "with/run", "v3") == weights(tmp_path / "without/run", "v2")


def test_a_held_task_is_trained_again_with_other_rows_and_may_then_stand_before_tasks_learned_earlier(
    held, monkeypatch
):
    project = held
    train(project)
    write_rows(project / "two.jsonl", 2, 20)
    assert status(project / "run")["pending"] == ["two"] and status(project / "run")["held"] == {}
    plant(monkeypatch, lambda v, n: [False, *KEPT[1:]] if (v, n) == ("v4", "three") else KEPT)
    result = train(project, gate=ON | {"margin": 5.0})
    store = Workspace(project / "run")
    fourth = store.current()
    assert result.held is None
    assert (fourth.name, fourth.record["parent"], fourth.contains) == ("v4", "v3", ["one", "three", "two"])
    assert result.matrix.tasks == ["one", "three", "two"]
    R = result.matrix.R  # rows: base, one, three, two
    assert R[3, 1] == pytest.approx(100 - 100 / 150) and R[2, 1] == 100.0
    assert status(store.root)["measures"]["bwt"] == pytest.approx(((R[3, 0] - R[1, 0]) + (R[3, 1] - R[2, 1])) / 2)
    assert (store.root / "eval/matrix.csv").read_text().startswith("after,one,three,two\nbase,")
    assert status(store.root)["problem"] is None and plan(load_config(project / "run.yaml"), store.root)[0] == []
    with pytest.raises(ConfigError, match="Add new tasks after the learned ones"):
        train(project, tasks=[task("three"), task("one"), task("two")])


def test_restart_trains_a_held_task_again(held):
    path = write_config(held, tasks=TASKS[:2], gate=ON, **QUICK)
    assert plan(load_config(path), held / "run")[0] == []
    assert plan(load_config(path), held / "run", restart=True)[0] == ["two"]
    assert train(held, tasks=TASKS[:2], restart=True).held is None
    assert Workspace(held / "run").current().name == "v3"
    assert weights(held / "run", "v3") == weights(held / "run", "v2")  # the same rows give the same weights


def test_a_task_taken_out_of_the_yaml_is_no_longer_held(held):
    write_config(held, tasks=[task("one"), task("three")], gate=ON, **QUICK)
    assert status(held / "run")["held"] == {} and status(held / "run")["pending"] == ["three"]


def test_a_task_held_on_another_line_of_versions_is_pending(held):
    store = Workspace(held / "run")
    with store.writing():
        store.move(store.version("v0"), event="rollback", before="v1")
    assert status(held / "run")["pending"] == ["one", "two", "three"]


@pytest.mark.parametrize(("choice", "current"), [("ship", "v2"), ("hold", "v1")])
def test_a_version_of_which_the_rows_do_not_decide_is_taken_or_held_as_configured(
    project, monkeypatch, choice, current
):
    plant(monkeypatch, on("v2", "one", UNSURE))
    said = Said()
    result = train(project, tasks=TASKS[:2], gate={"inconclusive": choice}, progress=said)
    store = Workspace(project / "run")
    assert store.current().name == current and store.version("v2").record["gate"]["verdict"] == "inconclusive"
    assert said.found[0]["tasks"]["one"]["verdict"] == "inconclusive"
    if choice == "ship":
        assert result.held is None and "v2 is the current version all the same" in said.lines[-1]
    else:
        assert result.held == said.found[0] and "two: held, because v2 may have lost on one" in said.lines[-1]


def test_each_task_has_its_margin_and_the_gate_may_be_off(project, monkeypatch):
    plant(monkeypatch, on("v2", "one", LOST))
    train(project, tasks=TASKS[:2], gate={"margins": {"one": 25}})
    store = Workspace(project / "run")
    assert store.current().name == "v2" and store.current().record["gate"]["margins"] == {"one": 25.0}
    plant(monkeypatch, lambda version, name: LOST if version == "v3" else KEPT)
    assert train(project, gate={"enabled": False}).held is None
    assert store.current().name == "v3" and store.current().record["gate"] is None


def test_missing_answers_of_the_version_before_are_given_again_before_the_task_is_trained(project, monkeypatch):
    path = project / "run/eval/samples/v1-one.jsonl"
    content = path.read_text()
    path.unlink()
    plant(monkeypatch, lambda version, name: KEPT)
    assert train(project, tasks=TASKS[:2]).held is None
    assert path.read_text() == content and Workspace(project / "run").current().name == "v2"


@pytest.mark.parametrize(
    ("where", "call"),
    [
        pytest.param("judge", 1, marks=pytest.mark.slow),  # scored, not judged
        ("Workspace.publish", 1),
        ("Workspace.log", 1),  # version.json written, not renamed
        ("Workspace.settle", 1),  # renamed, nothing else
        pytest.param("Workspace.remove", 2, marks=pytest.mark.slow),  # with the checkpoints still there
        ("Workspace.log", 2),  # all but the last entry of the ledger
    ],
)
def test_a_run_that_ended_anywhere_ends_with_the_same_hold(project, monkeypatch, where, call):
    plant(monkeypatch, on("v2", "one", LOST))
    owner, name = (Workspace, where.split(".")[1]) if "." in where else (run_module, where)
    original, calls = getattr(owner, name), []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Stop
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(owner, name, stopping)
        train(project, tasks=TASKS[:2])
    store = Workspace(project / "run")
    assert store.current().name == "v1" and status(store.root)["current"] == "v1"
    result = train(project, tasks=TASKS[:2])
    entered = [e["version"] for e in store.ledger() if e["event"] == "version"]
    assert entered == ["v0", "v1", "v2"] and store.current().name == "v1"
    assert result.held["verdict"] == "hold" and verify(project / "run/eval/gate/v2-v1.json")["verdict"] == "hold"
    assert not list((store.root / "run").rglob("*.*")) and not list((store.root / "versions").glob(".tmp*"))


def test_a_run_that_ended_after_the_hold_was_entered_goes_on_with_the_next_task(project, monkeypatch):
    plant(monkeypatch, on("v2", "one", LOST))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(run_module, "show_verdict", stop)  # only the evidence and the message are missing
        train(project)
    said = Said()
    assert train(project, progress=said).held is None
    assert any("two: held, because v2 lost points on one" in line for line in said.lines)
    assert Workspace(project / "run").current().record["parent"] == "v1"
    assert verify(project / "run/eval/gate/v2-v1.json")["verdict"] == "hold"


def stop(*_, **__):
    raise Stop


def test_an_unfinished_task_is_not_lost_when_a_held_one_before_it_gets_other_rows(held, monkeypatch):
    saves = {"training": QUICK["training"] | {"save_strategy": "steps", "save_steps": 1}}
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(run_module, "write_state", stop)
        train(held, **saves)  # task three, up to its last checkpoint
    write_rows(held / "two.jsonl", 2, 20)
    before = tree_hash(held / "run")
    with pytest.raises(CheckpointError, match="unfinished training of task `three`, but `tasks:` now lists `two`"):
        train(held, **saves)
    assert tree_hash(held / "run") == before
    train(held, tasks=[task("one"), task("three")], **saves)
    assert Workspace(held / "run").current().contains == ["one", "three"]
    assert json.loads((held / "run/versions/v3/training.json").read_text())["resumed_at"] > 0


@pytest.mark.parametrize(
    "damage",
    [
        {"accepted": "yes"},
        {"verdict": "maybe"},
        {"against": "v0"},
        {"tasks": {"../one": "hold"}, "margins": {"../one": 2.0}},
        {"margins": {"one": 0}},
        {"margins": {}},
    ],
)
def test_a_record_with_an_invalid_verdict_is_refused(held, damage):
    path = held / "run/versions/v2/version.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"gate": record["gate"] | damage}))
    with pytest.raises(CheckpointError, match=r"not the record of a version: .*gate"):
        read_version(path.parent, None)


def test_on_the_command_line_a_hold_is_exit_code_3_and_status_says_what_to_do(project, monkeypatch):
    plant(monkeypatch, on("v2", "one", LOST))
    path = write_config(project, tasks=TASKS, gate=None, **QUICK)  # the gate is on by default
    done = CliRunner().invoke(app, ["train", str(path)])
    assert done.exit_code == 3, done.output
    assert "v2 against v1: HOLD" in done.stderr and "right, now wrong: …row 0 -> 'yes', now 'no'" in done.stderr
    assert "pending tasks: three" in done.stdout and "two: held, because v2 lost points on one" in done.stdout
    shown = CliRunner().invoke(app, ["status", str(path)])
    assert 'gorp promote --version v2 --anyway "REASON"' in " ".join(shown.stdout.split())
    checked = CliRunner().invoke(app, ["train", str(path), "--dry-run"])
    assert checked.exit_code == 0 and "pending tasks: three" in checked.stdout and "two: held" in checked.stderr
    again = CliRunner().invoke(app, ["train", str(path), "--json"])
    assert again.exit_code == 0, again.stderr
    state = json.loads(again.stdout)
    assert (state["current"], list(state["held"]), state["pending"]) == ("v3", ["two"], [])


def test_on_the_command_line_too_few_rows_are_exit_code_4_where_they_hold(project, monkeypatch):
    plant(monkeypatch, on("v2", "one", UNSURE))
    path = write_config(project, tasks=TASKS[:2], gate={"inconclusive": "hold"}, **QUICK)
    assert CliRunner().invoke(app, ["train", str(path)]).exit_code == 4


def test_the_record_knows_the_verdicts_of_the_gate():
    assert VERDICTS == get_args(Verdict)


names = st.lists(st.sampled_from("abcdefgh"), unique=True)


@given(names, st.sets(st.sampled_from("abcdefgh")), st.data())
def test_learned_tasks_fit_wherever_held_ones_stand_and_no_other_may_come_before_them(learned, held, data):
    more = [name for name in "ijk" if data.draw(st.booleans())]
    listed = [name for name in learned if name not in held] + more
    for name in sorted(held):  # learned later than its place, or not at all
        listed.insert(data.draw(st.integers(0, len(listed))), name)
    assert fits(listed, learned, held)
    assert order_of_learning(listed, learned)[: len(learned)] == learned
    assert sorted(order_of_learning(listed, learned)) == sorted(listed)
    steady = [name for name in learned if name not in held]
    if steady:
        assert not fits(["new", *listed], learned, held)
        assert not fits([name for name in listed if name != steady[-1]], learned, held)
    if len(steady) > 1:
        swapped = [steady[1] if n == steady[0] else steady[0] if n == steady[1] else n for n in listed]
        assert not fits(swapped, learned, held)


def test_a_task_is_not_trained_again_by_mistake_if_the_record_of_its_held_version_is_gone(held):
    (held / "run/versions/v2/version.json").unlink()
    before = tree_hash(held / "run")
    with pytest.raises(CheckpointError, match=r"versions/v2: missing.*held this version of `two`.*--restart"):
        train(held)
    assert tree_hash(held / "run") == before
    assert train(held, restart=True).held is None
    assert Workspace(held / "run").current().contains == ["one", "two", "three"]
