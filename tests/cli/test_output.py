"""Where a page may be written: never over a file of another kind, never into a workspace."""

from pathlib import Path

import pytest

from gorp.cli.output import check_outputs
from gorp.errors import ConfigError
from gorp.workspace import Workspace


ENDINGS = {"--out": ".html", "--csv": ".csv"}


@pytest.fixture
def folder(tmp_path):
    with Workspace(tmp_path / "run").writing():
        (tmp_path / "run/x").write_text("so that the workspace stays")
    (tmp_path / "rows.jsonl").write_text("mine")
    (tmp_path / "old.html").write_text("an older page")
    (tmp_path / "link.html").symlink_to(tmp_path / "rows.jsonl")
    (tmp_path / "way").symlink_to(tmp_path / "run")
    return tmp_path


def test_a_new_file_and_an_older_page_may_be_written(folder):
    check_outputs({"--out": folder / "old.html", "--csv": None}, ENDINGS)
    check_outputs({"--out": folder / "a/b/new", "--csv": folder / "new.csv"}, ENDINGS)


@pytest.mark.parametrize(
    ("out", "csv", "message"),
    [
        ("rows.jsonl", None, r"--out .*rows\.jsonl: exists, and its name does not end in \.html"),
        ("run", None, r"this is a folder\. Give the name of a file, e\.g\. .*run/page\.html"),
        ("run/ledger.jsonl", None, "inside the workspace"),
        ("run/new.html", None, "inside the workspace"),
        ("way/eval/new.html", None, "inside the workspace"),
        ("x.html", "run/x.csv", "--csv .*inside the workspace"),
        ("x.html", "x.html", "--csv .*the same file as --out"),
        ("x.html", "old.html", r"--csv .*does not end in \.csv"),
        ("rows.jsonl/x.html", None, "is not a folder that can be written to"),
        ("/dev/stdout", None, "exists, and its name does not end"),
    ],
)
def test_what_would_be_lost_is_named(folder, out, csv, message):
    with pytest.raises(ConfigError, match=message):
        check_outputs({"--out": folder / out, "--csv": csv and folder / csv}, ENDINGS)


@pytest.mark.parametrize("option", ["--out", "--csv"])
def test_a_dash_is_not_standard_output_and_is_refused(option):
    with pytest.raises(ConfigError, match=rf"^{option} -: .*Give the name of a file, e\.g\. page\{ENDINGS[option]}\.$"):
        check_outputs({option: Path("-")}, ENDINGS)
