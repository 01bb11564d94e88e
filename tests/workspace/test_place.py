"""What a path on the command line means."""

from pathlib import Path

import pytest

from gorp.errors import CheckpointError
from gorp.workspace.place import place


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the workspace `bot` and its YAML."""
    monkeypatch.chdir(tmp_path)
    Path("bot").mkdir()
    Path("bot/CURRENT").touch()
    Path("bot.yaml").touch()
    return tmp_path


def test_a_workspace_and_its_yaml(folder):
    assert place(Path("bot")) == (Path("bot"), None)
    assert place(Path("bot.yaml")) == (Path("bot"), Path("bot.yaml"))


def test_without_a_name_the_only_workspace_here_is_meant(folder, monkeypatch):
    assert place(Path(".")) == (Path("bot"), Path("bot.yaml"))
    Path("bot.yaml").unlink()
    assert place(Path(".")) == (Path("bot"), None)
    monkeypatch.chdir("bot")
    assert place(Path(".")) == (Path("."), None)


def test_two_workspaces_are_a_question(folder):
    Path("other").mkdir()
    Path("other/CURRENT").touch()
    with pytest.raises(CheckpointError, match=r"Name one of the workspaces here: bot, other\."):
        place(Path("."))
