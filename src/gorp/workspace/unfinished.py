"""A training that ended early: what it was begun with, and whether it may be gone on with.

Its identity is the task, the version it starts from, the rows, and every setting that decides its course. A training
is gone on with when all of that is as it was. When something differs and work was saved, that is the user's to decide;
when nothing was saved, the task begins anew.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gorp.errors import CheckpointError
from gorp.storage import read_json, write_json
from gorp.training import last_complete, last_whole
from gorp.workspace.changes import course, differences
from gorp.workspace.prepare import Session
from gorp.workspace.seal import SEAL, is_whole, sealed
from gorp.workspace.version import TRAINING, check_prepared


IDENTITY = "identity.json"
ANEW = "begin the task anew: `gorp train` with --restart."


class Unfinished:
    """The training of one task: its folder of checkpoints, the folder of the version it leads to, its identity.

    Args:
        session: The run.
        task: What is trained.
        rows: The fingerprint of the rows of every task that it is trained on.
        parent: Name of the version it starts from.
        version: Name of the version it leads to.
    """

    def __init__(self, session: Session, *, task: str, rows: Mapping[str, str], parent: str, version: str) -> None:
        self.task, self.store = task, session.workspace
        self.run: Path = session.workspace.run_folder(task)
        self.folder: Path = session.workspace.prepared(version)
        self.identity: dict[str, Any] = {
            "task": task,
            "parent": parent,
            "rows": dict(rows),
            "settings": course(session.config),
        }

    def saved(self) -> dict[str, Any] | None:
        """The identity of what was saved: a finished training, or a checkpoint; None where nothing would be lost.

        Raises:
            CheckpointError: If a file of it is damaged or missing.
        """
        if (self.folder / TRAINING).is_file():
            check_prepared(self.folder)
            return read_json(self.folder / TRAINING)["identity"]
        return None if last_complete(self.run) is None else self._written()

    def check(self) -> None:
        """Refuse to go on under other conditions than those it was begun under, or from damaged checkpoints.

        Raises:
            CheckpointError: It names what differs or is damaged, and what to do.
        """
        saved = self.saved()
        if saved is None:
            return
        if saved == self.identity:
            if not (self.folder / TRAINING).is_file():
                last_whole(self.run)  # a damaged checkpoint is refused now, not when the training begins
            return
        if saved.get("task") != self.task:
            what = f"task `{saved.get('task')}`, which is not the next one now"
        elif saved.get("rows") != self.identity["rows"]:
            what = f"task `{self.task}`, with other rows"
        elif saved.get("parent") != self.identity["parent"]:
            now = self.identity["parent"]
            what = f"task `{self.task}`, from version {saved.get('parent')}; it would start from {now}"
        else:
            found = differences(saved.get("settings", {}), self.identity["settings"])
            changed = ", ".join(f"{key} = {old!r} (now {new!r})" for key, old, new in found)
            what = f"task `{self.task}`, with {changed}"
        raise CheckpointError(
            f"{self.run}: holds an unfinished training of {what}. Change that back to go on with it, or begin the task "
            "anew as the configuration is now: `gorp train` with --restart."
        )

    def finished(self) -> dict[str, Any] | None:
        """What training.json says, where the training itself had ended under the same conditions."""
        if not (self.folder / TRAINING).is_file():
            return None
        check_prepared(self.folder)
        training = read_json(self.folder / TRAINING)
        return training if training["identity"] == self.identity else None

    def begin(self) -> bool:
        """Keep checkpoints of the same identity, remove all else, and write the identity down.

        Returns:
            Whether a training that had been begun otherwise, and of which nothing was saved, made room.
        """
        path = self.run / IDENTITY
        changed = path.is_file() and self._is_begun_otherwise()
        if self.saved() != self.identity:
            self.forget()
        self.store.remove(self.folder)
        write_json(path, sealed(self.identity))
        return changed

    def forget(self) -> None:
        """Remove whatever is there."""
        for path in (self.run, self.folder):
            self.store.remove(path)

    def _written(self) -> dict[str, Any]:
        """What identity.json says."""
        path = self.run / IDENTITY
        if not path.is_file():
            raise CheckpointError(f"{self.run}: lacks {IDENTITY}, so nobody knows how it was begun. As it is, {ANEW}")
        try:
            found = read_json(path)
        except CheckpointError as error:
            raise CheckpointError(f"{str(error).rstrip('.')}, or {ANEW}") from None
        if not isinstance(found, dict) or not is_whole(found):
            raise CheckpointError(f"{path}: not the file that was written. Restore it from a copy, or {ANEW}")
        return {key: value for key, value in found.items() if key != SEAL}

    def _is_begun_otherwise(self) -> bool:
        try:
            return self._written() != self.identity
        except CheckpointError:
            return True
