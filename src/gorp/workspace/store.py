"""A workspace on disk: the versions, each complete or absent; the scores; the ledger.

    gorp-workspace.json               the mark: written first; gorp writes to no folder without it
    gorp.lock                         exists while a process writes
    versions/vN/delta.safetensors     what training added to each touched weight since the base model
    versions/vN/memory.safetensors    the protected directions S of each weight
    versions/vN/method.safetensors    the rest of the method's state, for the next task
    versions/vN/training.json         cost and report of the task's training, and the SHA-256 of the three files above
    versions/vN/version.json          written last, with the SHA-256 of the other files
    eval/scores.json                  every score with its conditions; matrix.csv is made from it
    eval/samples/vN-<task>.jsonl      every answer
    eval/guard/vN.json                its loss on each text of the guard text
    run/<task>/checkpoint-*           checkpoints of an unfinished training
    config.json                       the configuration of the last `gorp train`, and the path of its YAML
    ledger.jsonl                      log of events, one per line, with the SHA-256 of every version.json
    CURRENT                           the version that the next task starts from, and the SHA-256 of its version.json

v0 is the base model: it has only a version.json. Only the ledger makes a folder a version; a folder that was copied
into `versions` is not one.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gorp.disk import disk_errors
from gorp.errors import CheckpointError, ConfigError, nearest
from gorp.permissions import make_folder
from gorp.storage import file_sha256, sync_folder, write_atomic, write_json
from gorp.workspace.accepted import kept_configuration
from gorp.workspace.ledger import VERSION_NAME, Ledger
from gorp.workspace.lock import Held
from gorp.workspace.mark import remove_folder, writing
from gorp.workspace.verbs import Verbs
from gorp.workspace.version import FILES, RECORD, Version, check_prepared, read_version, record_sha256


class Workspace(Verbs):
    """The folder of a sequence of tasks. Creating this object reads and writes nothing.

    Args:
        root: The folder; it need not exist.

    Example:
        >>> from gorp import Workspace
        >>> workspace = Workspace("bot")
        >>> workspace.exists()
        False
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.held: Held | None = None
        """The lock, while this object may write."""
        self.late: list[Version] = []
        """Versions of a killed process that this object entered into the ledger when it began to write."""
        self._ledger = Ledger(self.root / "ledger.jsonl")
        self._versions: dict[str, Version] = {}
        """The versions that were read and checked; one whose version.json changed since is read again."""

    @contextmanager
    def writing(self, sources: Iterable[Path] = ()) -> Iterator[None]:
        """Hold the lock of the workspace while the block runs; see `mark.writing`.

        A version that a killed process published without its last entry in the ledger is entered first; otherwise the
        next entry would hide it.
        """
        with writing(self.root, sources) as self.held:
            try:
                self.late = self.unsettled()
                for version in self.late:
                    self.settle(version)
                yield
            finally:
                self.held = None

    def check_held(self) -> None:
        """Check, before writing a version, that this process still holds the lock.

        Raises:
            CheckpointError: If the lock file was removed, so that another process may write here.
        """
        if self.held is not None:
            self.held.check()

    def exists(self) -> bool:
        """Whether there is any version, or CURRENT, or a version in the ledger."""
        there = (self.root / "versions").glob(f"v*/{RECORD}")
        return bool(self._ledger.entered()) or (self.root / "CURRENT").exists() or any(there)

    def versions(self) -> list[Version]:
        """Return all complete versions, by number.

        Raises:
            CheckpointError: If a version.json is damaged or the ledger is missing.
        """
        known = self._known()
        return [self._read(name, known) for name in sorted(known, key=_number) if self._is_complete(name)]

    def version(self, name: str) -> Version:
        """Return the version called `name`.

        Raises:
            ConfigError: If there is none; the message gives the nearest name.
            CheckpointError: If its version.json is missing or damaged.
        """
        known = self._known()
        if name in known and self._is_complete(name):
            return self._read(name, known)
        if name in known:
            raise CheckpointError(self._gone(name))
        if when := self._ledger.removed().get(name):
            raise ConfigError(
                f"{self.root}: version `{name}` was removed by `gorp gc` ({when}); its files are gone. `gorp log` says "
                "why."
            )
        names = [each for each in sorted(known, key=_number) if self._is_complete(each)]
        copied = VERSION_NAME.fullmatch(name) and self._is_complete(name)
        note = f"; versions/{name} was not created by this workspace (not in ledger.jsonl)" if copied else ""
        raise ConfigError(
            f"{self.root}: no version `{name}`; there are {', '.join(names) or 'none'}{note}.{nearest(name, names)}"
        )

    def current(self) -> Version:
        """Return the version that CURRENT names, or a newer one if the process ended before it updated CURRENT.

        A newer version that the gate holds does not become the current one.

        Raises:
            CheckpointError: If this is not a workspace, or CURRENT names a version that does not exist.
        """
        if (unsettled := self.unsettled()) and unsettled[-1].accepted:
            return unsettled[-1]
        path = self.root / "CURRENT"
        if not path.is_file():
            what = "a file; wanted the folder of a workspace" if self.root.is_file() else "not a gorp workspace"
            raise CheckpointError(f"{self.root}: {what} (no file CURRENT). `gorp train` creates one.")
        try:
            name, *digest = path.read_text(encoding="utf-8").split() or [""]
            version = self.version(name)
        except (ConfigError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{path}: does not name a complete version ({error}). Write the name of a version into this file."
            ) from None
        if digest and digest != [version.sha256]:
            raise CheckpointError(
                f"{path}: damaged: it names {name} with the SHA-256 of another version. Write only the name of the "
                "version that you want into this file."
            )
        return version

    def lineage(self, last: Version | None = None) -> list[Version]:
        """Return the versions from v0 to `last` (None for CURRENT), each the parent of the next.

        Raises:
            CheckpointError: As `current`, and if one of them is missing.
        """
        chain = [last or self.current()]
        while (parent := chain[0].record["parent"]) is not None:  # ends: a parent has a smaller number
            try:
                chain.insert(0, self.version(parent))
            except ConfigError as error:
                raise CheckpointError(
                    f"{self.root / 'versions' / parent}: missing, but {chain[0].name} was trained from it ({error}) "
                    "Restore it from a copy; without it no task can be trained."
                ) from None
        return chain

    def remarks(self) -> list[str]:
        """Return a sentence for each unusual but allowed state: CURRENT edited by hand, or a version copied here."""
        known, current = {**self._known(), **self._ledger.removed()}, self.current()
        names, lines = [version.name for version in self.versions()], []
        path = self.root / "CURRENT"
        if path.is_file() and len(path.read_text(encoding="utf-8").split()) == 1 and current.name != names[-1]:
            lines.append(f"CURRENT was set to {current.name} by hand; the newest version is {names[-1]}")
        copied = [path.parent.name for path in sorted((self.root / "versions").glob(f"v*/{RECORD}"))]
        lines += [
            f"versions/{name} was not created by this workspace (not in ledger.jsonl) and is ignored"
            for name in copied
            if name not in known
        ]
        return lines

    def accepted(self) -> tuple[dict[str, Any], Path | None]:
        """Return the configuration of the last run and the path of its YAML, if known.

        If config.json is missing, it is the configuration that the current version was trained with.

        Raises:
            CheckpointError: If this is not a workspace, or the file is damaged.
        """
        current = self.current()
        return kept_configuration(self.root) or (current.record["config"], None)

    def next_name(self) -> str:
        """Return the name of the next version; a number is never used twice."""
        folders = [path for path in (self.root / "versions").glob("v*") if VERSION_NAME.fullmatch(path.name)]
        used = [path.name for path in folders if not path.is_dir() or any(path.iterdir())]
        return f"v{max(map(_number, {*used, *self._ledger.entered()}), default=-1) + 1}"

    def prepared(self, name: str) -> Path:
        """Return the folder in which the files of version `name` are collected until it is published."""
        return self.root / "versions" / f".tmp-{name}"

    def run_folder(self, task: str) -> Path:
        """Return the folder of the checkpoints of an unfinished training."""
        return self.root / "run" / task

    def remove(self, folder: Path) -> None:
        """Remove a folder of `run` or `versions`; see `mark.remove_folder`."""
        remove_folder(self.root, folder)

    def publish(self, name: str, record: Mapping[str, Any]) -> Version:
        """Publish a prepared version: write version.json with the digests of its files, then rename its folder.

        A `prepared` event is written to the ledger between the two. If the process is killed after the rename, this
        event tells the next run that the version was created by this workspace.

        Args:
            name: Name of the version; its other files are in `prepared(name)`.
            record: Content of version.json besides the digests.

        Raises:
            CheckpointError: If a file changed since training wrote it, the disk cannot be written, or this process no
                longer holds the lock.
        """
        folder, target = self.prepared(name), self.root / "versions" / name
        with disk_errors(folder):
            make_folder(folder)
            for path in folder.iterdir():
                if path.name not in FILES:
                    path.unlink()
        digests = {file: file_sha256(folder / file) for file in sorted(FILES) if (folder / file).exists()}
        check_prepared(folder, digests)
        write_json(folder / RECORD, {"version": name, **record, "sha256": digests})
        self.check_held()
        self.log("prepared", version=name, sha256=record_sha256(folder))
        with disk_errors(target):
            os.replace(folder, target)
            sync_folder(target.parent)
        version = read_version(target, None)
        self.settle(version)
        return version

    def settle(self, version: Version) -> None:
        """Make a version CURRENT unless the gate holds it, remove its task's checkpoints, enter it into the ledger."""
        if version.accepted:
            write_atomic(self.root / "CURRENT", f"{version.name} {version.sha256}\n".encode())
        task = version.record["task"]
        if task is not None:
            self.remove(self.run_folder(task))
        self.log("version", version=version.name, parent=version.record["parent"], task=task, sha256=version.sha256)

    def move(self, version: Version, *, event: str, **facts: Any) -> None:
        """Make a version CURRENT that is not new, and enter why into the ledger.

        The entry comes first: a process that is killed between the two leaves a reason without a move, and never a move
        without its reason.

        Raises:
            CheckpointError: If the disk cannot be written, or this process no longer holds the lock.
        """
        self.check_held()
        self.log(event, version=version.name, **facts)
        write_atomic(self.root / "CURRENT", f"{version.name} {version.sha256}\n".encode())

    def unsettled(self) -> list[Version]:
        """Return a version that is complete but has no `version` event yet, because the process ended too early.

        The last event of the ledger must be its `prepared` event, with the digest of its version.json.
        """
        entered = self._ledger.entered()
        if prepared := self._ledger.prepared():
            name, sha256 = prepared
            if name in entered or not self._is_complete(name):
                return []
            return [read_version(self.root / "versions" / name, sha256)]
        name = f"v{max(map(_number, entered), default=-1) + 1}"
        if self._ledger.is_chained() or not self._is_complete(name):
            return []
        complete = {path.parent.name for path in (self.root / "versions").glob(f"v*/{RECORD}")}
        if complete - {*entered, name}:
            return []
        version = read_version(self.root / "versions" / name, None)  # gorp 0.1.0 wrote no `prepared` events
        newest = list(entered)[-1] if entered else None
        return [version] if version.record["parent"] in (newest, "v0") or newest is None else []

    def log(self, event: str, **facts: Any) -> None:
        """Append an event to the ledger; an incomplete last line is removed first."""
        self._ledger.append(event, **facts)

    def ledger(self) -> list[dict[str, Any]]:
        """Return all events; an incomplete last line is ignored.

        Raises:
            CheckpointError: If a line is damaged.
        """
        return self._ledger.events()

    def removed(self) -> dict[str, str]:
        """Return the versions that `gorp gc` has removed: name -> when."""
        return self._ledger.removed()

    def history(self) -> tuple[list[dict[str, Any]], str | None]:
        """Return the events of the ledger before the first damaged line, and what is wrong with it, if any is."""
        events, problem = self._ledger.whole_events()
        if not events and problem is None and self.exists():
            problem = self._without_ledger()
        return events, problem or self._ends_early(events)

    def _ends_early(self, events: Iterable[Mapping[str, Any]]) -> str | None:
        """Return what is wrong if the version in CURRENT was entered into the ledger after the last of `events`."""
        path = self.root / "CURRENT"
        name = next(iter(path.read_text(encoding="utf-8", errors="replace").split()), "") if path.is_file() else ""
        if not VERSION_NAME.fullmatch(name) or any(event.get("version") == name for event in events):
            return None
        if not self._is_complete(name):
            return None
        return (
            f"{self._ledger.path}: has no line on {name}, the version in CURRENT: lines are missing. Restore the file."
        )

    def _known(self) -> dict[str, str | None]:
        """Return the versions that this workspace created and has: name -> SHA-256 of version.json."""
        known = self._ledger.entered() | {version.name: version.sha256 for version in self.unsettled()}
        if not known and (self.root / "CURRENT").is_file() and (self.root / "versions").is_dir():
            raise CheckpointError(self._without_ledger())
        removed = self._ledger.removed()
        return {name: sha256 for name, sha256 in known.items() if name not in removed}

    def _without_ledger(self) -> str:
        return f"{self._ledger.path}: missing or empty, although there are versions. Restore it from a copy."

    def missing(self) -> list[str]:
        """Return a sentence for each version of the ledger that `gorp gc` did not remove and that is not there."""
        return [self._gone(name) for name in self.gone()]

    def gone(self) -> list[str]:
        """Return the names of those versions."""
        return [name for name in self._known() if not self._is_complete(name)]

    def _gone(self, name: str) -> str:
        path = self.root / "versions" / name / RECORD
        return f"{path}: missing, although ledger.jsonl has {name}. Restore it from a copy."

    def _is_complete(self, name: str) -> bool:
        return (self.root / "versions" / name / RECORD).is_file()

    def _read(self, name: str, known: Mapping[str, str | None]) -> Version:
        kept, folder = self._versions.get(name), self.root / "versions" / name
        if kept is None or known[name] != kept.sha256 or file_sha256(folder / RECORD) != kept.sha256:
            kept = self._versions[name] = read_version(folder, known[name])
        return kept


def _number(name: str) -> int:
    return int(name[1:])
