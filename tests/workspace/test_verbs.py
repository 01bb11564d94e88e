"""The methods of `Workspace` do what the commands do."""

import pytest

from gorp.workspace import Workspace, status
from gorp.workspace.gate import gate
from tests.workspace.planted import KEPT, LOST, plant
from tests.workspace.project import make_project, task
from tests.workspace.test_held import QUICK


def test_train_judges_and_every_other_verb_follows(tmp_path, monkeypatch):
    path = make_project(tmp_path, tasks=[task("one"), task("two")], gate={"margin": 2.0}, **QUICK)
    plant(monkeypatch, lambda v, n: LOST if (v, n) == ("v2", "one") else KEPT)
    workspace = Workspace(str(tmp_path / "run"))
    assert not workspace.exists()
    result = workspace.train(path)
    assert result.held is not None and result.held["verdict"] == "hold"
    assert workspace.status() == status(tmp_path / "run")
    assert workspace.gate(version="v2", dry_run=True) == gate(tmp_path / "run", version="v2", dry_run=True)
    assert not workspace.promote()["moved"]
    assert workspace.promote(anyway="a test")["moved"] and workspace.current().name == "v2"
    assert workspace.gc(dry_run=True)["dry_run"]
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        workspace.status(everything=True)
