"""A workspace on disk: versions that are whole or absent, the scores, the ledger.

    gorp-workspace.json               the mark: written first, a folder without it is not touched
    gorp.lock                         while a process writes
    versions/vN/delta.safetensors     what training added to each touched weight since the base model
    versions/vN/memory.safetensors    the protected directions S of each weight
    versions/vN/method.safetensors    the rest of the method's state, for the next task
    versions/vN/training.json         what the task's training cost and reported, and the SHA-256 of the three
    versions/vN/version.json          written last, with the SHA-256 of the others
    eval/scores.json                  every score with what it was measured on; matrix.csv is made from it
    eval/samples/vN-<task>.jsonl      every answer
    run/<task>/checkpoint-*           of a task in training
    config.json                       the configuration that `gorp train` accepted last, and the YAML it came from
    ledger.jsonl                      what happened, one event a line, with the SHA-256 of every version.json
    CURRENT                           the version that the next task starts from, and the SHA-256 of its version.json

v0 is the base model: a version.json alone. A version is what the ledger names; a folder that was copied to `versions`
is none.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gorp.disk import disk_errors
from gorp.errors import CheckpointError, ConfigError, nearest
from gorp.storage import sync_folder, write_atomic, write_json
from gorp.workspace.accepted import kept_configuration
from gorp.workspace.ledger import VERSION_NAME, Ledger
from gorp.workspace.lock import Held
from gorp.workspace.mark import remove_folder, writing
from gorp.workspace.state import file_sha256
from gorp.workspace.version import FILES, RECORD, Version, check_prepared, read_version, record_sha256


class Workspace:
    """The folder of a sequence of tasks. Making one of these touches nothing.

    Args:
        root: The folder; it need not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.held: Held | None = None
        """The lock, while this object writes."""
        self._ledger = Ledger(self.root / "ledger.jsonl")

    @contextmanager
    def writing(self, sources: Iterable[Path] = ()) -> Iterator[None]:
        """Be the one that writes here, while the block runs; see `mark.writing`."""
        with writing(self.root, sources) as self.held:
            try:
                yield
            finally:
                self.held = None

    def check_held(self) -> None:
        """See that the lock is still ours; before what other processes must not mix with theirs is written.

        Raises:
            CheckpointError: If somebody took it away, so that another process may write here.
        """
        if self.held is not None:
            self.held.check()

    def exists(self) -> bool:
        """Whether the sequence has begun: there is a base version, or something that came after one."""
        there = (self.root / "versions").glob(f"v*/{RECORD}")
        return bool(self._ledger.entered()) or (self.root / "CURRENT").exists() or any(there)

    def versions(self) -> list[Version]:
        """All complete versions, by number; whatever was interrupted is not among them.

        Raises:
            CheckpointError: For a damaged version.json, or a ledger that is gone.
        """
        known = self._known()
        return [self._read(name, known) for name in sorted(known, key=_number) if self._is_complete(name)]

    def version(self, name: str) -> Version:
        """The version called `name`.

        Raises:
            ConfigError: If there is none, with the nearest name.
        """
        known = self._known()
        if name in known and self._is_complete(name):
            return self._read(name, known)
        names = [each for each in sorted(known, key=_number) if self._is_complete(each)]
        copied = VERSION_NAME.fullmatch(name) and self._is_complete(name)
        there = f"; versions/{name} was not made here: ledger.jsonl does not name it" if copied else ""
        raise ConfigError(
            f"{self.root}: no version `{name}`; there are {', '.join(names) or 'none'}{there}.{nearest(name, names)}"
        )

    def current(self) -> Version:
        """The version that CURRENT names, or one so new that the process ended before CURRENT could name it.

        Raises:
            CheckpointError: If the workspace has none, or CURRENT names a version that is not there.
        """
        if unsettled := self.unsettled():
            return unsettled[-1]
        path = self.root / "CURRENT"
        if not path.is_file():
            what = "a file; wanted the folder of a workspace" if self.root.is_file() else "no gorp workspace"
            raise CheckpointError(f"{self.root}: {what} (no file CURRENT). `gorp train` makes one.")
        try:
            name, *digest = path.read_text(encoding="utf-8").split() or [""]
            version = self.version(name)
        except (ConfigError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: names no complete version ({error}). Write the name of one.") from None
        if digest and digest != [version.sha256]:
            raise CheckpointError(
                f"{path}: damaged: it names {name} with the SHA-256 of another version. Write the name of the version "
                "that you want, alone."
            )
        return version

    def lineage(self) -> list[Version]:
        """From the base model to CURRENT, each the parent of the next.

        Raises:
            CheckpointError: As `current`, and if one of them is gone.
        """
        chain = [self.current()]
        while (parent := chain[0].record["parent"]) is not None:  # always one of a smaller number
            try:
                chain.insert(0, self.version(parent))
            except ConfigError as error:
                raise CheckpointError(
                    f"{self.root / 'versions' / parent}: is gone, and {chain[0].name} was made from it ({error}) "
                    "Restore it from a copy; nothing is trained before that."
                ) from None
        return chain

    def remarks(self) -> list[str]:
        """What is unusual and allowed, a sentence each: CURRENT was written by hand, or a version was copied here."""
        known, current = self._known(), self.current()
        names, lines = [version.name for version in self.versions()], []
        path = self.root / "CURRENT"
        if path.is_file() and len(path.read_text(encoding="utf-8").split()) == 1 and current.name != names[-1]:
            lines.append(f"CURRENT was set to {current.name} by hand; the newest version is {names[-1]}")
        copied = [path.parent.name for path in sorted((self.root / "versions").glob(f"v*/{RECORD}"))]
        lines += [
            f"versions/{name} was not made here (ledger.jsonl does not name it), and is left alone"
            for name in copied
            if name not in known
        ]
        return lines

    def accepted(self) -> tuple[dict[str, Any], Path | None]:
        """The configuration that a run began with last; where none is kept, the one that CURRENT was made with.

        Raises:
            CheckpointError: If this is no workspace, or the file is damaged.
        """
        current = self.current()
        return kept_configuration(self.root) or (current.record["config"], None)

    def next_name(self) -> str:
        """The name of the version to be made next; numbers are never used again."""
        folders = [path for path in (self.root / "versions").glob("v*") if VERSION_NAME.fullmatch(path.name)]
        there = [path.name for path in folders if not path.is_dir() or any(path.iterdir())]
        return f"v{max(map(_number, {*there, *self._ledger.entered()}), default=-1) + 1}"

    def prepared(self, name: str) -> Path:
        """The folder in which version `name` is put together."""
        return self.root / "versions" / f".tmp-{name}"

    def run_folder(self, task: str) -> Path:
        """Where the checkpoints of a task in training lie."""
        return self.root / "run" / task

    def remove(self, folder: Path) -> None:
        """Remove a folder of `run` or `versions`; see `mark.remove_folder`."""
        remove_folder(self.root, folder)

    def publish(self, name: str, record: Mapping[str, Any]) -> Version:
        """Make a prepared version exist: version.json with the digests of its files, then one rename.

        Between the two the ledger hears of it: after a kill, that is how the version is known to be one of its own.

        Args:
            name: Of the version; its other files lie in `prepared(name)`.
            record: What version.json says besides the digests.

        Raises:
            CheckpointError: If a file is not as training wrote it, the disk refuses, or another process writes here.
        """
        folder, target = self.prepared(name), self.root / "versions" / name
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
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
        """Make a version CURRENT, enter it into the ledger, and drop the checkpoints that led to it."""
        write_atomic(self.root / "CURRENT", f"{version.name} {version.sha256}\n".encode())
        task = version.record["task"]
        if task is not None:
            self.remove(self.run_folder(task))
        self.log("version", version=version.name, parent=version.record["parent"], task=task, sha256=version.sha256)

    def unsettled(self) -> list[Version]:
        """A version that is complete but not in the ledger: the process ended between the two.

        It is the one whose making is the ledger's last word, and has the version.json that was written then.
        """
        entered = self._ledger.entered()
        if prepared := self._ledger.prepared():
            name, sha256 = prepared
            if name in entered or not self._is_complete(name):
                return []
            return [read_version(self.root / "versions" / name, sha256)]
        name = f"v{max(map(_number, entered), default=-1) + 1}"
        there = {path.parent.name for path in (self.root / "versions").glob(f"v*/{RECORD}")}
        later = there - {*entered, name}
        if self._ledger.is_chained() or later or not self._is_complete(name):
            return []
        version = read_version(self.root / "versions" / name, None)  # version 0.1.0 did not say what it was about to do
        newest = list(entered)[-1] if entered else None
        return [version] if version.record["parent"] in (newest, "v0") or newest is None else []

    def log(self, event: str, **facts: Any) -> None:
        """Append an event to the ledger; a torn last line, which never was an event, makes room."""
        self._ledger.append(event, **facts)

    def ledger(self) -> list[dict[str, Any]]:
        """All events; a torn last line is left out.

        Raises:
            CheckpointError: For a damaged line.
        """
        return self._ledger.events()

    def _known(self) -> dict[str, str | None]:
        """The versions that were made here: name -> SHA-256 of version.json."""
        known = self._ledger.entered() | {version.name: version.sha256 for version in self.unsettled()}
        if not known and (self.root / "CURRENT").is_file() and (self.root / "versions").is_dir():
            raise CheckpointError(
                f"{self._ledger.path}: is gone or empty, though there are versions. Restore it from a copy."
            )
        return known

    def _is_complete(self, name: str) -> bool:
        return (self.root / "versions" / name / RECORD).is_file()

    def _read(self, name: str, known: Mapping[str, str | None]) -> Version:
        return read_version(self.root / "versions" / name, known[name])


def _number(name: str) -> int:
    return int(name[1:])
