"""A training that was interrupted: what it was started with, and whether it can be continued.

Its identity is the task, the version it starts from, the rows, and every setting that influences the result. A training
is continued if its identity is unchanged. If it differs and a checkpoint exists, the user must decide (`--restart`); if
there is no checkpoint, the task is started again.
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
RESTART = "restart the task: `gorp train` with --restart."


class Unfinished:
    """The training of one task: its folder of checkpoints, the folder of the resulting version, its identity.

    Args:
        session: The run.
        task: Name of the task.
        rows: Task -> fingerprint of its training rows, for every task that is trained on.
        parent: Name of the version it starts from.
        version: Name of the resulting version.
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
        """Return the identity of a saved training, finished or with a checkpoint; None if nothing was saved.

        Raises:
            CheckpointError: If one of its files is damaged or missing.
        """
        if (self.folder / TRAINING).is_file():
            check_prepared(self.folder)
            return read_json(self.folder / TRAINING)["identity"]
        return None if last_complete(self.run) is None else self._written()

    def check(self) -> None:
        """Check that a saved training, if any, can be continued.

        Raises:
            CheckpointError: If its identity differs or a checkpoint is damaged; the message says what, and what to do.
        """
        saved = self.saved()
        if saved is None:
            return
        if saved == self.identity:
            if not (self.folder / TRAINING).is_file():
                last_whole(self.run)  # raises for a damaged checkpoint now, not when the training starts
            return
        if saved.get("task") != self.task:
            what = f"task `{saved.get('task')}`, which is not the next task now"
        elif saved.get("rows") != self.identity["rows"]:
            what = f"task `{self.task}`, with other rows"
        elif saved.get("parent") != self.identity["parent"]:
            now = self.identity["parent"]
            what = f"task `{self.task}`, from version {saved.get('parent')} (now {now})"
        else:
            found = differences(saved.get("settings", {}), self.identity["settings"])
            changed = ", ".join(f"{key} = {old!r} (now {new!r})" for key, old, new in found)
            what = f"task `{self.task}`, with {changed}"
        raise CheckpointError(
            f"{self.run}: holds an unfinished training of {what}. Change that back to continue it, or restart the task "
            "with the current configuration: `gorp train` with --restart."
        )

    def finished(self) -> dict[str, Any] | None:
        """Return the content of training.json if this training is finished with the same identity, else None."""
        if not (self.folder / TRAINING).is_file():
            return None
        check_prepared(self.folder)
        training = read_json(self.folder / TRAINING)
        return training if training["identity"] == self.identity else None

    def begin(self) -> bool:
        """Write the identity file; keep checkpoints of the same identity and remove everything else.

        Returns:
            Whether a training with another identity, of which nothing was saved, was removed.
        """
        path = self.run / IDENTITY
        changed = path.is_file() and self._identity_differs()
        if self.saved() != self.identity:
            self.forget()
        self.store.remove(self.folder)
        write_json(path, sealed(self.identity))
        return changed

    def forget(self) -> None:
        """Remove the checkpoints and the files of the resulting version."""
        for path in (self.run, self.folder):
            self.store.remove(path)

    def _written(self) -> dict[str, Any]:
        """Return the content of identity.json."""
        path = self.run / IDENTITY
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, so this training cannot be continued. Restore it, or {RESTART}")
        try:
            found = read_json(path)
        except CheckpointError as error:
            raise CheckpointError(f"{str(error).rstrip('.')}, or {RESTART}") from None
        if not isinstance(found, dict) or not is_whole(found):
            raise CheckpointError(f"{path}: damaged or changed. Restore it from a copy, or {RESTART}")
        return {key: value for key, value in found.items() if key != SEAL}

    def _identity_differs(self) -> bool:
        try:
            return self._written() != self.identity
        except CheckpointError:
            return True
