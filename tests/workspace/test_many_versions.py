"""A command reads each file of a workspace once, however many versions there are, and again if it has changed."""

import json

import pytest

from gorp.errors import CheckpointError
from gorp.workspace import Workspace, status
from tests.workspace.test_damage import make


@pytest.fixture
def store(tmp_path):
    return make(tmp_path / "work")


def test_status_parses_each_line_of_the_ledger_and_each_record_once(store, monkeypatch):
    """With 100 versions it took six seconds: the whole ledger was parsed 600 times."""
    wanted = len(store.ledger()) + len(store.versions())
    parsed, loads = [], json.loads

    def counted(text, *args, **options):
        parsed.append(text)
        return loads(text, *args, **options)

    monkeypatch.setattr(json, "loads", counted)
    status(store.root)
    assert wanted <= len(parsed) <= wanted + 4  # and scores, configuration


def test_a_changed_version_is_read_again(store):
    again = Workspace(store.root)
    assert again.current().name == "v2"
    path = store.root / "versions/v2/version.json"
    path.write_text(path.read_text().replace("one", "eno"))
    with pytest.raises(CheckpointError, match=r"v2/version\.json: damaged or changed"):
        again.current()


def test_a_changed_ledger_is_read_again(store):
    again = Workspace(store.root)
    before = again.ledger()
    before[0]["event"] = "what a caller does to its list"
    assert again.ledger() == store.ledger() != before
    path = store.root / "ledger.jsonl"
    path.write_text(path.read_text().replace('"v1"', '"v7"', 1))
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl, line"):
        again.ledger()
