"""Whatever a workspace holds can be read by its owner only, unless the owner opens its folder to others."""

import os

import pytest

from tests.command import gorp
from tests.durability.workspace import configure, make_workspace, must


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    before = os.umask(0o022)
    yield make_workspace(tmp_path_factory.mktemp("private"))
    os.umask(before)


def modes(folder) -> dict[str, str]:
    """Return the permissions of everything below a folder and of itself."""
    found = [folder, *sorted(folder.rglob("*"))]
    return {str(path.relative_to(folder.parent)): oct(path.stat().st_mode & 0o777) for path in found}


def test_files_have_0600_and_folders_0700(project):
    """Also those that the Trainer wrote, and the page with answers; the YAML and an export are ordinary files."""
    found = modes(project / "run")
    assert len(found) > 60 and any("checkpoint-4/optimizer.pt" in path for path in found)
    wanted = {path: "0o700" if (project / path).is_dir() else "0o600" for path in found}
    assert found == wanted
    pages = [project / name for name in ("r.html", "r.md", "r.csv")]
    must("report", project / "run", "--out", pages[0], "--markdown", pages[1], "--csv", pages[2])
    assert {oct(page.stat().st_mode & 0o777) for page in pages} == {"0o600"}
    must("export", project / "run", project / "out")
    assert set(modes(project / "out").values()) == {"0o755", "0o644"}


def test_a_folder_that_was_opened_to_the_group_stays_open(project):
    root = project / "run"
    root.chmod(0o750)
    for path in root.rglob("*"):
        path.chmod(0o750 if path.is_dir() else 0o640)
    assert gorp("train", configure(project, 4)).exit_code == 0
    found = modes(root)
    assert any("versions/v4" in path for path in found)
    assert set(found.values()) == {"0o750", "0o640"}
