"""A complete version: its folder, what its version.json says, and whether its files are as they were written.

Nothing in a version.json is believed before it is checked: names become paths, and a workspace may come from elsewhere.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gorp.disk import LEFTOVER
from gorp.errors import CheckpointError
from gorp.storage import read_json
from gorp.workspace.ledger import SHA256, VERSION_NAME
from gorp.workspace.seal import is_whole
from gorp.workspace.state import DELTA, MEMORY, METHOD, file_sha256, read_state


if TYPE_CHECKING:
    from torch import Tensor


TRAINING, RECORD = "training.json", "version.json"
BASE_PARTS = {
    "config_sha256": "config.json",
    "tokenizer_sha256": "tokenizer",
    "tokenizer_more_sha256": "tokenizer",
    "generation_sha256": "generation_config.json",
    "code_sha256": "Python code, or `model.trust_remote_code`,",
}
"""Digests of a base model beside that of its weights -> what they are of."""

FILES = (DELTA, MEMORY, METHOD, TRAINING)
"""What a version holds besides its version.json; v0 holds none of them."""

TASK_NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]+")
"""A name that can be a file's and leads nowhere else."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A complete version."""

    name: str
    """v0 (the base model), v1, ..."""
    folder: Path
    record: Mapping[str, Any]
    """Its version.json."""
    sha256: str
    """Of its version.json."""

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
            if name in FILES and file_sha256(self.folder / name) != digest:
                raise CheckpointError(
                    f"{self.folder / name}: not the file that was written (its SHA-256 differs from the one in "
                    f"{RECORD}). Restore it from a copy."
                )

    def check_base(self, base: Mapping[str, Any]) -> None:
        """Check that what goes with the base model's weights is what the version was made with: `BASE_PARTS`.

        All of it decides answers. A part of which the record has no digest, because it is older, is not checked.

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


def read_version(folder: Path, sha256: str | None) -> Version:
    """Read and check the version in `folder`.

    Args:
        folder: Its last part is the version's name.
        sha256: What the ledger says of its version.json; None where it says nothing.

    Raises:
        CheckpointError: If version.json is missing, damaged, not the one that was written, or says what cannot be.
    """
    path = folder / RECORD
    record, found = read_json(path), file_sha256(path)
    if sha256 not in (None, found):
        raise CheckpointError(
            f"{path}: not the file that was written (its SHA-256 differs from the one in ledger.jsonl). Restore it "
            "from a copy."
        )
    if wrong := _wrong(record, folder.name):
        raise CheckpointError(f"{path}: not a version's record: {wrong}. Restore it from a copy.")
    return Version(name=folder.name, folder=folder, record=record, sha256=found)


def check_prepared(folder: Path, digests: Mapping[str, str] | None = None) -> None:
    """See that the files of a version in preparation are those that training wrote; before it is a version or is used.

    Args:
        folder: It may lack a training.json, which is written last; then nothing is known.
        digests: Of its files, where they were taken already.

    Raises:
        CheckpointError: It names the file, and says that the task can be begun anew.
    """
    path = folder / TRAINING
    if not path.is_file():
        return
    training = read_json(path)
    anew = "Restore it from a copy, or begin the task anew: `gorp train` with --restart."
    if not isinstance(training, dict) or not is_whole(training) or not isinstance(training.get("identity"), dict):
        raise CheckpointError(f"{path}: not the file that was written. {anew}")
    for name, digest in training.get("sha256", {}).items():
        if name not in FILES or (digests or {}).get(name, file_sha256(folder / name)) != digest:
            raise CheckpointError(f"{folder / name}: not the file that training wrote. {anew}")


def record_sha256(folder: Path) -> str:
    """SHA-256 of the version.json in `folder`."""
    return hashlib.sha256((folder / RECORD).read_bytes()).hexdigest()


def _wrong(record: Any, name: str) -> str | None:
    """What of a version.json cannot be, in a few words; None where all can."""
    kinds = {"contains": list, "base": dict, "sha256": dict, "config": dict, "tasks": dict}
    if not isinstance(record, dict):
        return "no JSON object"
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            return f"`{key}` is missing or is not what it should be"
    if not {"parent", "task"} <= set(record):
        return "`parent` or `task` is missing"
    base, parent, task = record["base"], record["parent"], record["task"]
    if not _matches(SHA256, base.get("sha256")) or not isinstance(base.get("path"), str):
        return "`base` lacks the path or the SHA-256 of a model"
    if record.get("version", name) != name:
        return f"it is that of {record['version']!r}"
    if parent is not None and (not _matches(VERSION_NAME, parent) or int(parent[1:]) >= int(name[1:])):
        return f"its parent is {parent!r}, which is no earlier version"
    for task_name in [*record["contains"], *record["tasks"], *([] if task is None else [task])]:
        if not _matches(TASK_NAME, task_name):
            return f"{task_name!r} is no name of a task"
    for file, digest in record["sha256"].items():
        if not (file in FILES or LEFTOVER.fullmatch(file)) or not _matches(SHA256, digest):
            return f"`sha256` names {file!r}, which no version holds"
    for task_name, facts in record["tasks"].items():
        if not isinstance(facts, dict) or not isinstance(facts.get("notes", []), list):
            return f"`tasks.{task_name}` is not what it should be"
    return None


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
