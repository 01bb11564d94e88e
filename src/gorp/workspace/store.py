"""A workspace on disk: versions that are whole or absent, the scores, the ledger.

    versions/vN/delta.safetensors     what training added to each touched weight since the base model
    versions/vN/memory.safetensors    the protected directions S of each weight
    versions/vN/method.safetensors    the rest of the method's state, for the next task
    versions/vN/training.json         what the task's training cost and reported
    versions/vN/version.json          written last, with the SHA-256 of the others: a version exists when it does
    eval/scores.json                  every score with what it was measured on; matrix.csv is made from it
    eval/samples/vN-<task>.jsonl      every answer
    run/<task>/checkpoint-*           of a task in training
    config.json                       the configuration that `gorp train` accepted last, and the YAML it came from
    ledger.jsonl                      what happened, one event a line
    CURRENT                           the version that the next task starts from

v0 is the base model: a version.json alone.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gorp.errors import CheckpointError, ConfigError, nearest
from gorp.storage import read_json, sync_folder, write_atomic, write_json
from gorp.workspace.state import MEMORY, file_sha256, read_state


if TYPE_CHECKING:
    from torch import Tensor


BASE_PARTS = {"config_sha256": "config.json", "tokenizer_sha256": "tokenizer"}
"""Digests of a base model beside that of its weights -> what they are of."""

TRAINING, RECORD, CONFIG = "training.json", "version.json", "config.json"


@dataclass(frozen=True, kw_only=True)
class Version:
    """A complete version."""

    name: str
    """v0 (the base model), v1, ..."""
    folder: Path
    record: Mapping[str, Any]
    """Its version.json."""

    @property
    def contains(self) -> list[str]:
        """The tasks it has learned, in order."""
        return list(self.record["contains"])

    def verify(self, base_sha256: str) -> None:
        """Check that every file is as it was written, and that the version belongs to this base model.

        Raises:
            CheckpointError: It names the damaged or missing file.
        """
        if self.record["base"]["sha256"] != base_sha256:
            raise CheckpointError(
                f"{self.folder}: made for another base model: weights {self.record['base']['sha256'][:12]}…, the "
                f"configured ones are {base_sha256[:12]}…. Configure the model it was made with "
                f"({self.record['base']['path']}), or use another workspace."
            )
        for name, digest in self.record["sha256"].items():
            if file_sha256(self.folder / name) != digest:
                raise CheckpointError(
                    f"{self.folder / name}: not the file that was written (its SHA-256 differs from the one in "
                    f"{RECORD}). Restore it from a copy."
                )

    def check_base(self, base: Mapping[str, Any]) -> None:
        """Check that the configuration and the tokenizer of the base model are those that the version was made with.

        Both decide what the weights compute. A version without these digests, made by gorp 0.1.0, is not checked.

        Args:
            base: As in the record.

        Raises:
            CheckpointError: It names the one that differs.
        """
        for key, what in BASE_PARTS.items():
            if self.record["base"].get(key, base.get(key)) != base.get(key):
                raise CheckpointError(
                    f"{self.folder}: made with the same weights, but the base model's {what} is not what it was. "
                    f"Restore the files of {base['path']} as they were, or use another workspace."
                )

    def method_state(self, base_sha256: str) -> "dict[str, Tensor]":
        """The state of the method after this version's last task, verified; empty for v0.

        Raises:
            CheckpointError: If a file is damaged, or the memory is another model's or of another side.
        """
        self.verify(base_sha256)
        return read_state(self.folder, base_sha256) if MEMORY in self.record["sha256"] else {}


class Workspace:
    """The folder of a sequence of tasks. Making one of these touches nothing.

    Args:
        root: The folder; it need not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def exists(self) -> bool:
        """Whether there is a base version, so that the sequence has begun."""
        return (self.root / "versions" / "v0" / RECORD).exists()

    def versions(self) -> list[Version]:
        """All complete versions, by number; whatever was interrupted is not among them.

        Raises:
            CheckpointError: For a damaged version.json.
        """
        folders = [path for path in (self.root / "versions").glob("v*") if re.fullmatch(r"v\d+", path.name)]
        return [self._read(path) for path in sorted(folders, key=lambda path: int(path.name[1:])) if _complete(path)]

    def version(self, name: str) -> Version:
        """The version called `name`.

        Raises:
            ConfigError: If there is none, with the nearest name.
        """
        folder = self.root / "versions" / name
        if not re.fullmatch(r"v\d+", name) or not _complete(folder):
            known = [version.name for version in self.versions()]
            raise ConfigError(
                f"{self.root}: no version `{name}`; there are {', '.join(known) or 'none'}.{nearest(name, known)}"
            )
        return self._read(folder)

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
            return self.version(path.read_text(encoding="utf-8").strip())
        except (ConfigError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: names no complete version ({error}). Write the name of one.") from None

    def lineage(self) -> list[Version]:
        """From the base model to CURRENT, each the parent of the next."""
        chain = [self.current()]
        while (parent := chain[0].record["parent"]) is not None:
            chain.insert(0, self.version(parent))
        return chain

    def accept(self, config: Mapping[str, Any], source: Path | None) -> None:
        """Keep the configuration that a run begins with.

        Args:
            config: In full, as JSON values.
            source: The YAML that it was read from, if any.
        """
        kept = {"source": None if source is None else str(source), "config": dict(config)}
        path = self.root / CONFIG
        if not path.is_file() or read_json(path) != kept:
            write_json(path, kept)

    def accepted(self) -> tuple[dict[str, Any], Path | None]:
        """What `accept` kept last; where it kept nothing, the configuration that CURRENT was made with.

        Raises:
            CheckpointError: If this is no workspace, or the file is damaged.
        """
        current = self.current()
        path = self.root / CONFIG
        if not path.is_file():
            return current.record["config"], None
        kept = read_json(path)
        if not isinstance(kept, dict) or not {"source", "config"} <= set(kept):
            raise CheckpointError(f"{path}: not a kept configuration. Remove it; `gorp train` writes it again.")
        return kept["config"], kept["source"] and Path(kept["source"])

    def next_name(self) -> str:
        """The name of the version to be made next; numbers are never used again."""
        versions = self.versions()
        return f"v{int(versions[-1].name[1:]) + 1}" if versions else "v0"

    def prepared(self, name: str) -> Path:
        """The folder in which version `name` is put together."""
        return self.root / "versions" / f".tmp-{name}"

    def run_folder(self, task: str) -> Path:
        """Where the checkpoints of a task in training lie."""
        return self.root / "run" / task

    def publish(self, name: str, record: Mapping[str, Any]) -> Version:
        """Make a prepared version exist: version.json with the digests of its files, then one rename.

        Args:
            name: Of the version; its other files lie in `prepared(name)`.
            record: What version.json says besides the digests.
        """
        folder, target = self.prepared(name), self.root / "versions" / name
        folder.mkdir(parents=True, exist_ok=True)
        digests = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name != RECORD}
        write_json(folder / RECORD, {"version": name, **record, "sha256": digests})
        os.replace(folder, target)
        sync_folder(target.parent)
        version = self._read(target)
        self.settle(version)
        return version

    def settle(self, version: Version) -> None:
        """Make a version CURRENT, enter it into the ledger, and drop the checkpoints that led to it."""
        write_atomic(self.root / "CURRENT", f"{version.name}\n".encode())
        task = version.record["task"]
        if task is not None:
            shutil.rmtree(self.run_folder(task), ignore_errors=True)
        self.log("version", version=version.name, parent=version.record["parent"], task=task)

    def unsettled(self) -> list[Version]:
        """Versions that are complete but not in the ledger: the process ended between the two."""
        entered = {event["version"] for event in self.ledger() if event["event"] == "version"}
        return [version for version in self.versions() if version.name not in entered]

    def log(self, event: str, **facts: Any) -> None:
        """Append an event to the ledger; a torn last line, which never was an event, makes room."""
        path = self.root / "ledger.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"time": when, "event": event, **facts}, ensure_ascii=False) + "\n"
        with open(path, "a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def ledger(self) -> list[dict[str, Any]]:
        """All events; a torn last line is left out.

        Raises:
            CheckpointError: For a damaged line before the last.
        """
        path = self.root / "ledger.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
        events = []
        for number, line in enumerate(lines, 1):
            try:
                events.append(json.loads(line))
            except ValueError as error:
                raise CheckpointError(f"{path}, line {number}: damaged ({error}). Restore the file.") from None
        return events

    def _read(self, folder: Path) -> Version:
        record = read_json(folder / RECORD)
        wanted = {"contains", "parent", "task", "base", "sha256", "config", "tasks"}
        if not isinstance(record, dict) or not wanted <= set(record):
            raise CheckpointError(f"{folder / RECORD}: not a version's record. Restore it from a copy.")
        return Version(name=folder.name, folder=folder, record=record)


def _complete(folder: Path) -> bool:
    return (folder / RECORD).is_file()
