"""Going forward: a later version becomes current if the gate accepts it, or with a reason that is kept."""

import json
import shutil

import pytest

from gorp.errors import CheckpointError, ConfigError
from gorp.workspace import Workspace, load_config, run_sequence, status
from gorp.workspace import store as store_module
from gorp.workspace.promote import LONGEST_REASON, promote
from gorp.workspace.verify import verify
from tests.command import gorp
from tests.workspace.planted import KEPT, LOST, UNSURE, plant
from tests.workspace.project import make_project, task, tree_hash, write_config, write_rows
from tests.workspace.test_held import QUICK, Stop


LINES = ["v3 against v1: SHIP", "the current version is v3 now, and was v1; the next task starts from v3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """v1 learned one; v2 learned two from it and lost (held); v3 learned three from v1. CURRENT is v3."""
    folder = tmp_path_factory.mktemp("promote")
    tasks = [task("one"), task("two"), task("three")]
    path = make_project(folder, tasks=tasks, gate={"margin": 2.0}, **QUICK)
    write_rows(folder / "three.jsonl", 3, 24)
    write_rows(folder / "three_eval.jsonl", 3, 6)
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, lambda v, n: {"v2": LOST, "v4": UNSURE}.get(v, KEPT) if n == "one" else KEPT)
        for _ in range(2):
            run_sequence(load_config(path), folder / "run")
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy in which CURRENT went back to v1."""
    shutil.copytree(finished, tmp_path / "p")
    back_to(tmp_path / "p/run", "v1")
    return tmp_path / "p/run"


def back_to(run, name):
    store = Workspace(run)
    with store.writing():
        store.move(store.version(name), event="rollback", before=store.current().name)


def test_after_a_rollback_the_newest_later_version_becomes_current_again(run):
    found = promote(run)
    assert (found["version"], found["from"], found["accepted"], found["moved"]) == ("v3", "v1", True, True)
    assert found["learned"] == ["three"] and found["gate"]["verdict"] == "ship"
    store = Workspace(run)
    assert store.current().name == "v3" and store.current().contains == ["one", "three"]
    last = store.ledger()[-1]
    assert {key: last[key] for key in last if key != "time"} == {
        "event": "promote",
        "version": "v3",
        "before": "v1",
        "verdict": "ship",
        "accepted": True,
    }
    assert verify(run / "eval/gate/v3-v1.json")["verdict"] == "ship" and status(run)["anyway"] == {}


def test_the_base_model_lost_nothing_so_any_version_may_follow_it(run):
    back_to(run, "v0")
    assert promote(run, version="v1")["moved"] and Workspace(run).current().name == "v1"


def test_a_version_that_lost_is_refused_and_its_evidence_is_kept(run):
    found = promote(run, version="v2")
    assert (found["accepted"], found["moved"], found["gate"]["verdict"]) == (False, False, "hold")
    assert Workspace(run).current().name == "v1" and Workspace(run).ledger()[-1]["event"] == "rollback"
    assert verify(run / "eval/gate/v2-v1.json")["verdict"] == "hold"


def test_a_version_that_lost_is_taken_with_a_reason_which_status_shows(run):
    found = promote(run, version="v2", anyway=" the lost rows were wrong\n")
    assert found["moved"] and not found["accepted"] and Workspace(run).current().name == "v2"
    assert Workspace(run).ledger()[-1]["reason"] == "the lost rows were wrong"
    assert status(run)["anyway"] == {"v2": "the lost rows were wrong"}
    assert status(run)["held"] == {} and status(run)["pending"] == ["three"]
    shown = gorp("status", run).stdout
    assert "v2 was promoted although the gate did not accept it: the lost rows were wrong" in " ".join(shown.split())
    back_to(run, "v1")
    assert status(run)["anyway"] == {} and list(status(run)["held"]) == ["two"]


def test_the_margins_of_the_yaml_decide(run):
    write_config(run.parent, tasks=[task("one"), task("two"), task("three")], gate={"margins": {"one": 25}}, **QUICK)
    assert promote(run, version="v2")["moved"]
    assert Workspace(run).ledger()[-1]["accepted"] is True and status(run)["anyway"] == {}


@pytest.mark.parametrize("reason", ["", "  \n", "x" * (LONGEST_REASON + 1), "\udcff"])
def test_a_reason_that_says_nothing_is_refused(run, reason):
    before = tree_hash(run)
    with pytest.raises(ConfigError, match="--anyway"):
        promote(run, version="v2", anyway=reason)
    assert tree_hash(run) == before


@pytest.mark.parametrize(
    ("current", "version", "message"),
    [
        ("v3", None, "no version was trained from the current one, v3"),
        ("v3", "v3", "v3 is the current version already"),
        ("v3", "v1", r"v1 comes before the current version, v3. `gorp rollback`"),
        ("v3", "v2", r"v2 was not trained from the current version, v3; no version was. Its ancestors are v1, v0"),
        ("v1", "v9", "no version `v9`"),
    ],
)
def test_an_impossible_target_is_refused(run, current, version, message):
    if current == "v3":
        promote(run)
    before = tree_hash(run)
    with pytest.raises(ConfigError, match=message):
        promote(run, version=version)
    assert tree_hash(run) == before


def test_a_damaged_target_is_refused_whatever_the_reason(run):
    path = run / "versions/v2/delta.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    before = tree_hash(run)
    with pytest.raises(CheckpointError, match=r"delta\.safetensors: damaged"):
        promote(run, version="v2", anyway="it is needed")
    assert tree_hash(run) == before


def test_a_version_without_answers_is_not_compared_and_so_not_promoted(run):
    (run / "eval/samples/v3-one.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"v3 has no recorded answers on one"):
        promote(run)
    assert Workspace(run).current().name == "v1"


def test_a_kill_before_the_pointer_moves_leaves_a_reason_and_no_move(run, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(store_module, "write_atomic", lambda *_: (_ for _ in ()).throw(Stop))
        promote(run, version="v2", anyway="needed")
    assert Workspace(run).current().name == "v1" and status(run)["anyway"] == {}
    assert Workspace(run).ledger()[-1]["reason"] == "needed"
    assert promote(run, version="v2", anyway="needed")["moved"] and status(run)["anyway"] == {"v2": "needed"}


def test_a_second_writer_is_refused(run):
    store = Workspace(run)
    with store.writing(), pytest.raises(CheckpointError, match="already writing there"):
        promote(run)
    assert store.current().name == "v1"


def test_a_held_version_that_a_killed_process_published_can_be_promoted(run):
    """As after a kill between the rename of v3 and the last line of the ledger; v2 is older and entered."""
    path, lines = run / "ledger.jsonl", (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    second = next(n for n, line in enumerate(lines) if json.loads(line)["event"] == "version" and '"v2"' in line)
    shutil.rmtree(run / "versions/v3")
    path.write_text("".join(lines[:second]))  # ends with the `prepared` event of v2
    assert [version.name for version in Workspace(run).unsettled()] == ["v2"]
    assert Workspace(run).current().name == "v1"
    assert promote(run, anyway="needed")["version"] == "v2" and Workspace(run).current().name == "v2"
    assert [version.name for version in Workspace(run).versions()] == ["v0", "v1", "v2"]


def test_on_the_command_line(run):
    before = tree_hash(run)
    dry = gorp("promote", run.with_suffix(".yaml"), "--version", "v2", "--dry-run")
    assert dry.exit_code == 3 and "v2 against v1: HOLD" in dry.stdout
    assert "would not go on from v1 to v2; nothing was changed" in dry.stdout and tree_hash(run) == before
    refused = gorp("promote", run, "--version", "v2")
    assert refused.exit_code == 3 and "the current version is still v1" in refused.stdout
    assert gorp("promote", run, "--version", "v2", "--anyway", "").exit_code == 2
    assert gorp("promote", run, "--version", "v9").exit_code == 2
    done = gorp("promote", run)
    assert done.exit_code == 0 and all(line in done.stdout for line in LINES)
    assert gorp("promote", run).exit_code == 2
    back_to(run, "v1")
    taken = gorp("promote", run, "--version", "v2", "--anyway", "we need it", "--json")
    assert taken.exit_code == 0 and json.loads(taken.stdout)["anyway"] == "we need it"


def test_too_few_rows_are_accepted_or_exit_code_4(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "p")
    project, tasks = tmp_path / "p", [task("one"), task("two"), task("three")]
    plant(monkeypatch, lambda version, name: UNSURE if (version, name) == ("v4", "one") else KEPT)
    write_rows(project / "two.jsonl", 2, 20)
    path = write_config(project, tasks=tasks, gate={"inconclusive": "hold"}, **QUICK)
    assert run_sequence(load_config(path), project / "run").held["verdict"] == "inconclusive"
    refused = gorp("promote", path)
    assert refused.exit_code == 4 and Workspace(project / "run").current().name == "v3"
    write_config(project, tasks=tasks, gate={"inconclusive": "ship"}, **QUICK)
    assert gorp("promote", path).exit_code == 0 and Workspace(project / "run").current().name == "v4"
    assert Workspace(project / "run").current().contains == ["one", "three", "two"]
