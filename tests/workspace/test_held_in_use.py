"""A held version is named where somebody could serve it by mistake: in an export, by `ask`, by `doctor`."""

import json
import shutil

import pytest

from gorp.doctor import check_workspace
from gorp.workspace import Workspace
from gorp.workspace.ask import Answerer
from gorp.workspace.export import export_version
from gorp.workspace.held import held_in_use
from gorp.workspace.promote import promote
from tests.command import gorp
from tests.workspace.test_held import Said, begun, holding  # noqa: F401  fixtures


SENTENCE = (
    "v2 is held: with two it lost points on one, so the gate says HOLD against v1; it is not part of the current "
    "version"
)


@pytest.fixture
def run(holding, tmp_path):  # noqa: F811
    """v1 learned one; v2 learned two from it and is held."""
    shutil.copytree(holding, tmp_path / "p")
    return tmp_path / "p/run"


def test_an_export_of_a_held_version_says_so_on_stderr_and_in_its_card(run, tmp_path):
    out, said = tmp_path / "out", Said()
    found = export_version(Workspace(run).version("v2"), out, to="lora", each=True, progress=said)
    assert found["held"] == [SENTENCE] and SENTENCE in said.lines
    assert f"**{SENTENCE}.**" in (out / "README.md").read_text()
    assert f"**{SENTENCE}.**" in (out / "v2/README.md").read_text()
    assert "held" not in (out / "v1/README.md").read_text()
    assert json.loads((out / "gorp-export.json").read_text())["held"] == [SENTENCE]
    done = gorp("export", run, tmp_path / "again", "--version", "v2", "--dry-run")
    assert SENTENCE in done.stderr and SENTENCE not in done.stdout


def test_an_export_of_a_version_that_is_not_held_says_nothing(run, tmp_path):
    found = export_version(Workspace(run).version("v1"), tmp_path / "out", to="lora")
    assert found["held"] == [] and "held" not in (tmp_path / "out/README.md").read_text()


def test_a_question_to_a_held_version_is_answered_with_a_remark(run):
    said = Said()
    Answerer.load(run, version="v2", progress=said)
    assert SENTENCE in said.lines
    said = Said()
    Answerer.load(run, progress=said)
    assert not any(" is held" in line for line in said.lines)


def test_doctor_lists_held_versions_and_has_no_problem_with_them(run):
    found = [finding for finding in check_workspace(run) if " is held" in finding.says]
    assert [(finding.level, finding.says) for finding in found] == [("ok", SENTENCE)]


def test_a_version_that_was_promoted_is_not_held_until_a_rollback_leaves_it(run):
    promote(run, version="v2", anyway="the lost rows were wrong")
    store = Workspace(run)
    assert held_in_use(store, store.version("v2")) == []
    with store.writing():
        store.move(store.version("v1"), event="rollback", before="v2")
    assert held_in_use(store, store.version("v2")) == [SENTENCE]
