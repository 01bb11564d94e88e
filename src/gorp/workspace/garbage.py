"""Find what a workspace no longer needs, and how much disk it takes.

    versions      older than CURRENT, on a branch that was left by a rollback; with their scores and answers
    trainings     folders of checkpoints whose task is learned, or, only if asked, whose task the YAML no longer lists
    leftovers     of killed processes

A version is needed if it is CURRENT or newer, if the gate did not accept it, if it is of a joint method, or if a needed
version was trained from it. Newer versions are needed because a rollback has just left them, or because they were
trained from CURRENT. What the gate did not accept tells `gorp train` which tasks wait, or were learned later than their
place in the YAML.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gorp.disk import LEFTOVER
from gorp.storage import file_sha256
from gorp.workspace.lock import holder_of
from gorp.workspace.mark import GONE
from gorp.workspace.scores import Scores
from gorp.workspace.store import Version, Workspace
from gorp.workspace.version import RECORD, TRAINING


JOINT = "joint"
"""Task of a version of a joint method (`gorp.sequence.JOINT`): all of them are trained from v0, so none is a branch."""

DIGESTED = (RECORD, TRAINING, "identity.json")
"""Of a folder the first of these files that it has; its SHA-256 is entered into the ledger."""

EVAL = ("eval", "eval/samples", "eval/rows", "eval/gate", "eval/guard")
"""The folders of files about scores."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to remove."""

    path: str
    """Relative to the workspace."""
    why: str
    bytes: int
    version: str | None = None
    """The version that it is, or that it belongs to."""
    sha256: str | None = None
    """Digest of the file of `DIGESTED` in the folder."""

    def to_dict(self) -> dict[str, Any]:
        """Return the values that are not None."""
        return {key: value for key, value in vars(self).items() if value is not None}


def find(store: Workspace, *, unlisted: Collection[str] = ()) -> list[Item]:
    """Return what can be removed, in the order of removal. Nothing is written.

    While another process writes, its temporary files are not counted.

    Args:
        store: The workspace.
        unlisted: Tasks whose unfinished training is not needed.
    """
    holder = holder_of(store.root)
    busy = store.held is None and holder is not None and holder[1]
    return [
        *_versions(store),
        *_trainings(store, unlisted),
        *([] if busy else _leftovers(store)),
    ]


def abandoned(store: Workspace) -> list[Version]:
    """Return the versions that no needed version was trained from; see the top of this file."""
    versions, current = store.versions(), store.current()
    needed: set[str] = set()
    for version in reversed(versions):  # a parent has a smaller number than its child
        gate = version.record.get("gate")
        is_held = isinstance(gate, dict) and gate.get("accepted") is False
        own = _number(version) >= _number(current) or is_held or version.record["task"] == JOINT
        if own or version.name in needed:
            needed |= {version.name, version.record["parent"]}
    return [version for version in versions if version.name not in needed]


def bytes_of(path: Path) -> int:
    """Return the size of a file, or of the files in a folder; links are not followed."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size if path.is_symlink() or path.exists() else 0
    files = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.exists())


def _versions(store: Workspace) -> Iterator[Item]:
    """Yield abandoned versions and what is left of removed ones, then their scores and answers."""
    current = store.current().name
    gone = abandoned(store)
    for version in gone:
        yield Item(
            path=f"versions/{version.name}",
            why=f"{current} was not trained from it, nor was a newer version; it was left by a rollback",
            bytes=bytes_of(version.folder),
            version=version.name,
            sha256=version.sha256,
        )
    removed = store.removed()
    for name in removed:
        if (store.root / "versions" / name).exists():
            why = "it was removed before; that removal was interrupted"
            yield Item(path=f"versions/{name}", why=why, bytes=bytes_of(store.root / "versions" / name), version=name)
    scores = Scores(store.root / "eval")
    for name in (*(version.name for version in gone), *removed):
        answers = scores.samples_of([name])
        if answers or name in scores.cells:
            size = sum(map(bytes_of, answers))
            yield Item(path=f"eval/samples/{name}-*", why=f"answers and scores of {name}", bytes=size, version=name)


def _trainings(store: Workspace, unlisted: Collection[str]) -> Iterator[Item]:
    learned = store.current().contains
    for folder in sorted((store.root / "run").glob("*")):
        if folder.is_dir() and (folder.name in learned or folder.name in unlisted):
            why = "the task is learned" if folder.name in learned else "the YAML no longer lists this task"
            yield _folder(store, folder, f"checkpoints; {why}")


def _leftovers(store: Workspace) -> Iterator[Item]:
    why = "left by a killed process"
    for folder in sorted((store.root / "versions").glob(".tmp-*")):
        needed = folder.name == f".tmp-{store.next_name()}" and (folder / TRAINING).is_file()
        if folder.is_dir() and not needed:
            yield _folder(store, folder, why)
    for folder in (store.root, *(store.root / name for name in ("versions", "run", *EVAL))):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            temporary = LEFTOVER.fullmatch(path.name) and not path.is_dir()
            if temporary or (folder == store.root and path.name.startswith(GONE)):
                yield Item(path=str(path.relative_to(store.root)), why=why, bytes=bytes_of(path))


def _folder(store: Workspace, folder: Path, why: str) -> Item:
    known = next((folder / name for name in DIGESTED if (folder / name).is_file()), None)
    sha256 = None if known is None else file_sha256(known)
    return Item(path=str(folder.relative_to(store.root)), why=why, bytes=bytes_of(folder), sha256=sha256)


def _number(version: Version) -> int:
    return int(version.name[1:])
