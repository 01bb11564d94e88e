"""Where a workspace may be: a folder that is new, empty, or marked as one. Anything else there is somebody's.

The mark is a file, written before all others. A workspace of version 0.1.0 has none; it is known by its base version
and what stands beside it, and is marked when it is next written to.
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
from gorp.storage import read_json, remove_leftovers, write_json
from gorp.workspace.lock import LOCK, Held, locked


MARK = "gorp-workspace.json"
FORMAT = 1
"""Of what is on disk; a workspace of a later format is left to a later gorp."""

FOLDERS = ("versions", "run", "eval")
"""What a workspace has beside its files."""

GONE = ".gone-"
"""Begins the name that a folder has while it is being removed: it is gone at once, or not at all."""


def check_place(root: Path, sources: Iterable[Path] = ()) -> None:
    """Refuse a folder that cannot become a workspace, or is something else. Nothing is written.

    Args:
        root: The folder; it need not exist.
        sources: Files and folders that are read: the model, the rows. A workspace that held them would be no place
            for them, since it removes what lies in its way.

    Raises:
        ConfigError: It says what is there, and what to do.
        CheckpointError: For a damaged mark, a workspace of a later format, or a link that leads out of the workspace.
    """
    _check_path(root)
    resolved = Path(os.path.realpath(root))
    for source in sources:
        if Path(os.path.realpath(source)).is_relative_to(resolved):
            raise ConfigError(
                f"{root}: cannot be the workspace, because {source} lies there and is read. Give another folder with "
                "--workspace."
            )
    others = (
        [name for name in os.listdir(root) if name != LOCK and not LEFTOVER.fullmatch(name)] if root.is_dir() else []
    )
    if root.is_dir() and not is_workspace(root) and (found := sorted(others)):
        some = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise ConfigError(
            f"{root}: holds other files than a workspace's ({some}). Nothing was written there. A workspace is made in "
            "a new or an empty folder: give one with --workspace."
        )
    for link in _links(root):
        raise CheckpointError(
            f"{link}: a link to another folder, and gorp writes only within a workspace. Put the folder itself there."
        )


def is_workspace(root: Path) -> bool:
    """Whether the folder has the mark of a workspace, or is one that version 0.1.0 wrote.

    Raises:
        CheckpointError: For a damaged mark, or that of a later format.
    """
    path = root / MARK
    if not path.exists():
        return _is_older(root)
    mark = read_json(path)
    found = mark.get("format") if isinstance(mark, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise CheckpointError(f"{root}: a workspace of format {found}; this gorp knows {FORMAT}. Install a newer gorp.")
    if found != FORMAT:
        raise CheckpointError(f"{path}: not the mark of a workspace. Restore it from a copy.")
    return True


@contextmanager
def writing(root: Path, sources: Iterable[Path] = ()) -> Iterator[Held]:
    """Be the one that writes into a workspace, while the block runs; the folder is made and marked if it is new.

    What a block that fails left of a new workspace, a mark alone, is taken away again.

    Raises:
        ConfigError, CheckpointError: As `check_place`, and if another process writes there.
    """
    check_place(root, sources)
    made = [path for path in (root, *root.parents) if not path.exists()]
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    try:
        with locked(root) as held:
            check_place(root, sources)  # what was there before the lock may have changed
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
            if not marked and older:  # now that nothing was refused
                _write_mark(root)
    finally:
        for path in made:  # the folder, then those above it
            try:
                path.rmdir()
            except OSError:  # it is in use
                break


def remove_folder(root: Path, folder: Path) -> None:
    """Remove a folder of `run` or `versions`, whatever it holds; it need not exist.

    Raises:
        ValueError: If it lies elsewhere.
        CheckpointError: If the disk refuses.
    """
    if folder.parent not in (root / "run", root / "versions") or folder.name in ("", ".", ".."):
        raise ValueError(f"{folder}: no folder of {root / 'run'} or {root / 'versions'}")
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
                raise ConfigError(f"{place}: a link that leads nowhere; wanted a folder for the workspace.")
            place = place.parent
        if not place.is_dir():
            what = "is a file" if place == root else f"cannot be made, because {place} is a file"
            raise ConfigError(f"{root}: {what}; wanted a folder for the workspace. Give one with --workspace.")
    except OSError as error:
        raise ConfigError(f"{root}: cannot be a workspace ({error.strerror}). Give one with --workspace.") from None


def _is_older(root: Path) -> bool:
    """Whether version 0.1.0 made this workspace: it has a base version, and a configuration or a ledger of ours."""
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
    """Links in the place of folders that a workspace writes into or empties."""
    for name in FOLDERS:
        if (root / name).is_symlink():
            yield root / name
            continue
        for folder, names, _ in os.walk(root / name):
            yield from (Path(folder) / item for item in names if (Path(folder) / item).is_symlink())
