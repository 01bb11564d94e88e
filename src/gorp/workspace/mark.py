"""Which folder may be a workspace: one that is new, empty, or has the mark file. Other folders are never written to.

The mark file is written before all others. A workspace of gorp 0.1.0 has none: it is recognized by its base version and
the files beside it, and is marked at the next write.
"""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gorp.disk import LEFTOVER, disk_errors
from gorp.errors import CheckpointError, ConfigError
from gorp.permissions import make_folder
from gorp.storage import read_json, remove_leftovers, write_json
from gorp.workspace.lock import LOCK, Held, locked


MARK = "gorp-workspace.json"
FORMAT = 1
"""Version of the format on disk; a workspace with a later format is refused."""

FOLDERS = ("versions", "run", "eval")
"""The folders in a workspace."""

GONE = ".gone-"
"""Prefix of the name that a folder gets before its files are deleted, so that none is ever partly deleted in place."""


def check_place(root: Path, sources: Iterable[Path] = ()) -> None:
    """Check that a folder is a workspace or can become one. Nothing is written.

    Args:
        root: The folder; it need not exist.
        sources: Files and folders that are read: the model, the rows. They must not be inside the workspace, which
            removes files it does not need.

    Raises:
        ConfigError: If the folder cannot be a workspace; the message says what is in it and what to do.
        CheckpointError: For a damaged mark, a workspace of a later format, or a link that leads out of the workspace.
    """
    _check_path(root)
    resolved = Path(os.path.realpath(root))
    for source in sources:
        if Path(os.path.realpath(source)).is_relative_to(resolved):
            raise ConfigError(
                f"{root}: cannot be the workspace, because it contains {source}, which is an input. Give another "
                "folder with --workspace."
            )
    others = (
        [name for name in os.listdir(root) if name != LOCK and not LEFTOVER.fullmatch(name)] if root.is_dir() else []
    )
    if root.is_dir() and not is_workspace(root) and (found := sorted(others)):
        some = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise ConfigError(
            f"{root}: this folder is not a workspace and holds other files ({some}). Nothing was written there. Give a "
            "new or empty folder with --workspace."
        )
    for link in _links(root):
        raise CheckpointError(
            f"{link}: this is a link, but gorp writes only inside the workspace folder. Replace it by its target."
        )


def is_workspace(root: Path) -> bool:
    """Whether the folder has the mark of a workspace, or is one that gorp 0.1.0 wrote.

    Raises:
        CheckpointError: For a damaged mark, or that of a later format.
    """
    path = root / MARK
    if not path.exists():
        return _is_older(root)
    mark = read_json(path)
    found = mark.get("format") if isinstance(mark, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise CheckpointError(
            f"{root}: the workspace has format {found}, but this gorp reads only {FORMAT}. Install a newer gorp."
        )
    if found != FORMAT:
        raise CheckpointError(f"{path}: damaged: not the mark of a workspace. Restore it from a copy.")
    return True


@contextmanager
def writing(root: Path, sources: Iterable[Path] = ()) -> Iterator[Held]:
    """Hold the lock of a workspace while the block runs; a new folder is created and marked.

    If the block wrote nothing into a new workspace, because it failed, the mark and the folder are removed again.

    Raises:
        ConfigError: As `check_place`.
        CheckpointError: As `check_place`, and if another process writes there.
    """
    check_place(root, sources)
    made = [path for path in (root, *root.parents) if not path.exists()]
    with disk_errors(root):
        make_folder(root.parent)
        root.mkdir(mode=0o700, exist_ok=True)  # it holds data; see `gorp.storage`
    try:
        with locked(root) as held:
            check_place(root, sources)  # again, because the folder may have changed before the lock was granted
            for folder in (root, root / "versions"):
                remove_leftovers(folder)
            for path in root.glob(f"{GONE}*"):
                shutil.rmtree(path, ignore_errors=True)
            marked, older = (root / MARK).exists(), _is_older(root)
            if not marked and not older:
                _write_mark(root)
            try:
                yield held
            finally:
                if not marked and set(os.listdir(root)) <= {MARK, LOCK}:
                    (root / MARK).unlink()
            if not marked and older:  # only now, when the block has succeeded
                _write_mark(root)
    finally:
        for path in made:  # the folder, then its new parents
            try:
                path.rmdir()
            except OSError:  # not empty: the workspace was created
                break


def remove_folder(root: Path, folder: Path) -> None:
    """Remove a folder directly inside `run` or `versions` with everything in it; it need not exist.

    Raises:
        ValueError: If it is elsewhere.
        CheckpointError: If the disk cannot be written.
    """
    if folder.parent not in (root / "run", root / "versions") or folder.name in ("", ".", ".."):
        raise ValueError(f"{folder}: not a folder directly inside {root / 'run'} or {root / 'versions'}")
    with disk_errors(folder):
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        elif folder.exists():
            gone = root / f"{GONE}{secrets.token_hex(8)}"
            os.replace(folder, gone)
            shutil.rmtree(gone)


def _write_mark(root: Path) -> None:
    write_json(root / MARK, {"format": FORMAT, "about": "a workspace of gorp; `gorp status` shows it"})


def _check_path(root: Path) -> None:
    try:
        place = root
        while not place.exists() and place != place.parent:
            if place.is_symlink():
                raise ConfigError(f"{place}: this link has no target; wanted a folder for the workspace.")
            place = place.parent
        if not place.is_dir():
            what = "is a file" if place == root else f"cannot be created, because {place} is a file"
            raise ConfigError(f"{root}: {what}; wanted a folder for the workspace. Give one with --workspace.")
    except OSError as error:
        raise ConfigError(f"{root}: cannot be a workspace ({error.strerror}). Give one with --workspace.") from None


def _is_older(root: Path) -> bool:
    """Whether gorp 0.1.0 made this workspace: it has a base version, and a configuration or a ledger of gorp."""
    if not (root / "versions/v0/version.json").is_file():
        return False
    base, kept = _json(root / "versions/v0/version.json"), _json(root / "config.json")
    beside = (isinstance(kept, dict) and {"source", "config"} <= set(kept)) or (root / "ledger.jsonl").is_file()
    return beside and isinstance(base, dict) and {"base", "contains", "parent", "sha256", "tasks"} <= set(base)


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except CheckpointError:
        return None


def _links(root: Path) -> Iterator[Path]:
    """Yield the links in the workspace, and inside the folders that gorp writes to or empties."""
    for name in sorted(os.listdir(root)) if root.is_dir() else ():
        if (root / name).is_symlink() and not name.startswith("."):  # an editor's, such as `.#CURRENT`
            yield root / name
    for name in FOLDERS:
        for folder, names, _ in os.walk(root / name):
            yield from (Path(folder) / item for item in names if (Path(folder) / item).is_symlink())
