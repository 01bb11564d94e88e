"""docs/monthly-update.md runs as it stands: a bad month is held, the next start from the good version, and back."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


PAGE = Path(__file__).parents[1].joinpath("docs/monthly-update.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S)


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block of the page in `folder`; it ends at its first command that fails."""
    bin_folder = Path(sys.executable).parent  # where `gorp` and `python` are
    env = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(["bash", "-ec", command], cwd=folder, env=env, capture_output=True, text=True)


def status(folder: Path) -> dict:
    return json.loads(run("gorp status bot.yaml --json", folder).stdout)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_bad_month_is_held_and_the_story_goes_on(tmp_path):
    answers, after = [], []
    for block in BLOCKS:
        done = run(block, tmp_path)
        print(f"$ {block}{done.stdout}{done.stderr[-2000:]}")
        wanted = re.search(r"# exit code (\d)", block)
        assert done.returncode == (int(wanted[1]) if wanted else 0)
        if (tmp_path / "bot").exists():
            after.append(status(tmp_path))
        if "gorp ask" in block:
            answers.append([line for line in done.stdout.splitlines() if line.strip()])

    october, november, november_seen, later, back, served = after
    assert october["current"] == "v1" and october["contains"] == ["october"]
    assert november["current"] == november_seen["current"] == "v1"
    assert november["held"]["november"]["version"] == "v2"
    assert november["held"]["november"]["tasks"] == ["october"]
    assert later["current"] == "v4" and later["contains"] == ["october", "december", "january"]
    assert back["current"] == served["current"] == "v3" and back["contains"] == ["october", "december"]
    moved = next(n for n, line in enumerate(answers[1]) if line.startswith("the current version is v1"))
    assert answers[1][moved + 2] == answers[0][-1]  # v1 answers after the rollback as in October
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "november" in page and "held" in page.lower()
    assert (tmp_path / "served" / "config.json").exists()
    assert october["matrix"]["R"][1][0] > 60


def test_the_story_has_every_everyday_command():
    commands = {word for block in BLOCKS for word in re.findall(r"^\s*gorp (\w+)", block, flags=re.M)}
    everyday = {"init", "add", "train", "status", "diff", "promote", "rollback", "export", "report", "ask", "log", "gc"}
    assert everyday <= commands
