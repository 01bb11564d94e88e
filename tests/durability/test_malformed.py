"""A malformed input is refused with a message that helps, and nothing is written."""

import re
import shutil

import pytest

from tests.command import gorp
from tests.durability.malformed import MODELS, ROWS, YAML, Case
from tests.durability.malformed_verbs import VERBS
from tests.durability.malformed_yaml import YAMLS
from tests.durability.workspace import files_of, make_workspace
from tests.workspace.project import save_model, tree_hash


pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A project that was never trained."""
    folder = tmp_path_factory.mktemp("original")
    save_model(folder / "model")
    for name, count in (("one.jsonl", 8), ("one_eval.jsonl", 3)):
        row = '{{"prompt": "{} light {}", "completion": "{}"}}\n'
        lines = (row.format(("green", "red")[i % 2], i, ("true", "false")[i % 2]) for i in range(count))
        (folder / name).write_text("".join(lines))
    (folder / "bot.yaml").write_text(YAML)
    return folder


@pytest.fixture
def project(original, tmp_path):
    shutil.copytree(original, tmp_path / "p")
    return tmp_path / "p"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with a workspace."""
    return make_workspace(tmp_path_factory.mktemp("trained"))


def check(project, case: Case) -> None:
    """Make the input, run the command, and check message and files."""
    _, make, command, words, code = case
    make(project)
    before, arguments = tree_hash(project), [word.replace("PROJECT", str(project)) for word in command]
    echoes = [*arguments, *before]
    assert [word for word in words.split() if not any(word in echo for echo in echoes)], "an echo would hold all words"
    done = gorp(*arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code == code, done.output
    message = re.sub(r"\s*│\s*│?|\s+", " ", done.output)  # typer folds its messages into a box
    assert "Traceback" not in message
    missing = [word for word in words.split() if word not in message.replace(" ", "")]
    assert not missing, f"no {missing} in: {message[-800:]}"
    assert len(message) < 3000, "a message that nobody reads"
    assert tree_hash(project) == before


@pytest.mark.parametrize("case", [*YAMLS, *ROWS, *MODELS], ids=lambda case: case[0])
def test_a_malformed_project_is_refused_before_anything_is_written(project, case):
    check(project, case)


@pytest.mark.parametrize("case", VERBS, ids=lambda case: case[0])
def test_a_command_that_cannot_be_done_is_refused_and_writes_nothing(trained, tmp_path, case):
    shutil.copytree(trained, tmp_path / "p")
    check(tmp_path / "p", case)


def test_the_project_itself_is_trained(project):
    done = gorp("train", project / "bot.yaml")
    assert done.exit_code == 0, done.output
    assert len(files_of(project / "bot")) > 10
