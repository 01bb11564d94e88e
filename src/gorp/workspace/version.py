"""A complete version: its folder, its version.json, and the checks that its files are unchanged.

Every value of a version.json is checked before it is used, because names become paths and a workspace may come from
somebody else.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gorp.disk import LEFTOVER
from gorp.errors import CheckpointError, ConfigError
from gorp.storage import file_sha256, read_json
from gorp.workspace.ledger import SHA256, VERSION_NAME
from gorp.workspace.seal import is_whole
from gorp.workspace.state import DELTA, MEMORY, METHOD, read_state


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
"""Keys of the digests of the base model (besides that of its weights) -> the part each belongs to."""

PROTECTION = "protection"
"""`made_by` of a version that `gorp.Protection` wrote, in a training loop that is not gorp's."""

VERDICTS = ("ship", "hold", "inconclusive")
"""What a gate may say, as `gorp.evaluation.paired.Verdict`, whose module imports scipy."""

FILES = (DELTA, MEMORY, METHOD, TRAINING)
"""Files of a version besides its version.json; v0 has none of them."""

TASK_NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]+")
"""A name that is safe as a file name: no path separator, not "." or ".."."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A complete version."""

    name: str
    """v0 (the base model), v1, ..."""
    folder: Path
    record: Mapping[str, Any] = field(repr=False)
    """Content of its version.json."""
    sha256: str
    """SHA-256 of its version.json."""

    @property
    def contains(self) -> list[str]:
        """The learned tasks, in order."""
        return list(self.record["contains"])

    @property
    def accepted(self) -> bool:
        """Whether the next task may start from it: False for a version that the gate holds."""
        gate = self.record.get("gate")
        return gate is None or gate["accepted"]

    @property
    def is_protection(self) -> bool:
        """Whether `gorp.Protection` wrote it: without rows, a YAML, or scores that gorp measured."""
        return self.record.get("made_by") == PROTECTION

    def check_trained_by_gorp(self, command: str) -> None:
        """Raise if the version belongs to a protection folder.

        Args:
            command: The command that needs a workspace of `gorp train`.

        Raises:
            ConfigError: The message says what to use instead.
        """
        if self.is_protection:
            folder = self.folder.parent.parent
            raise ConfigError(
                f"{folder}: a protection folder, made by gorp.Protection in a training loop of its own. It holds no "
                f"rows and no YAML, so `{command}` cannot use it. Train its next task with Protection({str(folder)!r}) "
                "in the Trainer's callbacks, and score it there with `evaluate=`; `gorp status` shows the folder, and "
                "`gorp export` writes a model."
            )

    def verify(self, base_sha256: str) -> None:
        """Check that every file is unchanged and that the version belongs to this base model.

        Raises:
            CheckpointError: If not; the message names the damaged or missing file.
        """
        if self.record["base"]["sha256"] != base_sha256:
            raise CheckpointError(
                f"{self.folder}: belongs to another base model: the SHA-256 of its weights is "
                f"{self.record['base']['sha256'][:12]}…, that of the configured model {base_sha256[:12]}…. Configure "
                f"the original model ({self.record['base']['path']}), or use another workspace."
            )
        self.check_files(*FILES)

    def check_files(self, *names: str) -> None:
        """Check that those of the files `names` that the version has are unchanged.

        Raises:
            CheckpointError: If not; the message names the damaged or missing file.
        """
        for name in names:
            digest = self.record["sha256"].get(name)
            if digest is not None and file_sha256(self.folder / name) != digest:
                raise CheckpointError(
                    f"{self.folder / name}: damaged or changed: its SHA-256 differs from the one in {RECORD}. Restore "
                    "it from a copy."
                )

    def check_base(self, base: Mapping[str, Any]) -> None:
        """Check that the other parts of the base model (`BASE_PARTS`) are those that the version was trained with.

        Each of them influences the answers. A part whose digest is missing in an older record is not checked.

        Args:
            base: Digests of the base model as it is now, with the keys of the record.

        Raises:
            CheckpointError: If a part differs; the message names it.
        """
        for key, what in BASE_PARTS.items():
            if self.record["base"].get(key, base.get(key)) != base.get(key):
                raise CheckpointError(
                    f"{self.folder}: the base model has the same weights as before, but its {what} has changed. "
                    f"Restore the original files of {base['path']}, or use another workspace."
                )

    def export(self, out: "Path | str", **options: Any) -> dict[str, Any]:
        """Write the version as a folder that needs no gorp; the options are those of `export.export_version`.

        Example:
            >>> from gorp import Workspace
            >>> Workspace("bot").version("v2").export("bot-model", to="merged")["dtype"]  # doctest: +SKIP
            'float32'
        """
        from gorp.workspace.export import export_version

        return export_version(self, Path(out), **options)

    def method_state(self, base_sha256: str) -> "dict[str, Tensor]":
        """Verify the version and return the state of the method after its last task; empty for v0.

        Raises:
            CheckpointError: If a file is damaged, or the memory belongs to another model or side of the weights.
        """
        self.verify(base_sha256)
        return read_state(self.folder, base_sha256) if MEMORY in self.record["sha256"] else {}


def read_version(folder: Path, sha256: str | None) -> Version:
    """Read and check the version in `folder`.

    Args:
        folder: Its last part is the version's name.
        sha256: SHA-256 of its version.json according to the ledger; None if the ledger has none.

    Raises:
        CheckpointError: If version.json is missing, damaged, changed, or holds an invalid value.
    """
    path = folder / RECORD
    record, found = read_json(path), file_sha256(path)
    if sha256 not in (None, found):
        raise CheckpointError(
            f"{path}: damaged or changed: its SHA-256 differs from the one in ledger.jsonl. Restore it from a copy."
        )
    if problem := _problem(record, folder.name):
        raise CheckpointError(f"{path}: not the record of a version: {problem}. Restore it from a copy.")
    return Version(name=folder.name, folder=folder, record=record, sha256=found)


def check_prepared(folder: Path, digests: Mapping[str, str] | None = None) -> None:
    """Check that the files of a version in preparation are those that training wrote.

    Args:
        folder: Of the version. Without a training.json, which is written last, nothing can be checked.
        digests: File -> SHA-256, if they were computed already.

    Raises:
        CheckpointError: If a file is damaged; the message names it and says how to restart the task.
    """
    path = folder / TRAINING
    if not path.is_file():
        return
    training = read_json(path)
    advice = "Restore it from a copy, or restart the task: `gorp train` with --restart."
    if not isinstance(training, dict) or not is_whole(training) or not isinstance(training.get("identity"), dict):
        raise CheckpointError(f"{path}: damaged or changed. {advice}")
    for name, digest in training.get("sha256", {}).items():
        if name not in FILES or (digests or {}).get(name, file_sha256(folder / name)) != digest:
            raise CheckpointError(f"{folder / name}: damaged or changed since training wrote it. {advice}")


def record_sha256(folder: Path) -> str:
    """Return the SHA-256 of the version.json in `folder`."""
    return hashlib.sha256((folder / RECORD).read_bytes()).hexdigest()


def _problem(record: Any, name: str) -> str | None:
    """Return what is invalid in a version.json, in a few words; None if it is valid."""
    kinds = {"contains": list, "base": dict, "sha256": dict, "config": dict, "tasks": dict}
    if not isinstance(record, dict):
        return "it is not a JSON object"
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            return f"`{key}` is missing or has the wrong type"
    if not {"parent", "task"} <= set(record):
        return "`parent` or `task` is missing"
    base, parent, task = record["base"], record["parent"], record["task"]
    if not _matches(SHA256, base.get("sha256")) or not isinstance(base.get("path"), str):
        return "`base` lacks the path or the SHA-256 of a model"
    if record.get("version", name) != name:
        return f"it belongs to version {record['version']!r}"
    if parent is not None and (not _matches(VERSION_NAME, parent) or int(parent[1:]) >= int(name[1:])):
        return f"its parent is {parent!r}, which is not an earlier version"
    for task_name in [*record["contains"], *record["tasks"], *([] if task is None else [task])]:
        if not _matches(TASK_NAME, task_name):
            return f"{task_name!r} is not a valid task name"
    for file, digest in record["sha256"].items():
        if not (file in FILES or LEFTOVER.fullmatch(file)) or not _matches(SHA256, digest):
            return f"`sha256` has an invalid entry for {file!r}"
    for task_name, facts in record["tasks"].items():
        if not isinstance(facts, dict) or not isinstance(facts.get("notes", []), list):
            return f"`tasks.{task_name}` has the wrong type"
    return None if (gate := record.get("gate")) is None else _gate_problem(gate, record, name)


def _gate_problem(gate: Any, record: Mapping[str, Any], name: str) -> str | None:
    """Return what is invalid in the `gate` of a version.json; None if it is valid."""
    if not isinstance(gate, dict) or not isinstance(gate.get("accepted"), bool):
        return "`gate` has the wrong type, or does not say whether the version is accepted"
    if gate.get("verdict") not in VERDICTS:
        return f"`gate.verdict` is {gate.get('verdict')!r}"
    if gate.get("against") != record["parent"] or record["parent"] is None or record["task"] is None:
        return f"its gate is against {gate.get('against')!r}, which is not the version that {name} was trained from"
    tasks, margins = gate.get("tasks"), gate.get("margins")
    if not isinstance(tasks, dict) or not isinstance(margins, dict) or set(tasks) != set(margins):
        return "`gate.tasks` or `gate.margins` is missing, or they name different tasks"
    if not all(_matches(TASK_NAME, task) and verdict in VERDICTS for task, verdict in tasks.items()):
        return "`gate.tasks` has an invalid entry"
    if not all(isinstance(margin, int | float) and 0 < margin < 100 for margin in margins.values()):
        return "`gate.margins` has an invalid entry"
    guard = gate.get("guard")
    if guard is not None and (not isinstance(guard, dict) or guard.get("verdict") not in (None, "ship", "hold")):
        return "`gate.guard` has the wrong type, or an invalid verdict"
    if guard is not None and not isinstance(guard.get("margin", ""), int | float | None):
        return "`gate.guard.margin` is missing or not a number"
    return None


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
