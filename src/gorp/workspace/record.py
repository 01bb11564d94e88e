"""Build the content of version.json."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import gorp
from gorp.data import Task, rows_fingerprint
from gorp.workspace.accepted import portable, portable_path
from gorp.workspace.config import effective
from gorp.workspace.prepare import Session
from gorp.workspace.scoring import measures_after
from gorp.workspace.status import PROMISE
from gorp.workspace.store import Version


TRAINED_ON = ("train_fingerprint", "train_sha256", "train_rows")
"""Keys on the training rows of a task. `train_sha256` is of the file; None for a folder or a hub data set."""

PACKAGES = ("accelerate", "datasets", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers")


def version_record(
    session: Session,
    *,
    lineage: Sequence[Version],
    task: str | None,
    contains: list[str],
    scores: dict[str, dict[str, Any]],
    training: Mapping[str, Any],
    gate: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of version.json without the version's name and the digests of its files, as JSON values.

    Args:
        session: The run.
        lineage: The versions from v0 to the parent; empty for v0 itself.
        task: The task learned last; None for v0.
        contains: All learned tasks.
        scores: The version's row of the score matrix.
        training: Content of training.json; empty for v0.
        gate: The verdict: `verdict`, `against`, `accepted`, `margins`, `tasks`; None if it was not judged.
    """
    facts = training.get("facts", {})
    return {
        "parent": lineage[-1].name if lineage else None,
        "task": task,
        "contains": contains,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "base": {**session.base, "path": portable_path(session.base["path"], _folder(session))},
        "config": portable(effective(session.config), session.config.source),
        "tasks": {item.name: _task(session, item, lineage) for item in session.tasks},
        "gate": None if gate is None else dict(gate),
        "metrics": {"scores": scores, "measures": measures_after(session, lineage, contains, scores)},
        **{key: facts.get(key) for key in PROMISE},
        "leak_earlier": training.get("leak_earlier"),
        "warnings": facts.get("warnings", []),
        "weights": facts.get("weights", {}),
        "footprint_bytes": facts.get("footprint_bytes", 0),
        "seconds": training.get("seconds", 0.0),
        "seed": session.config.seed,
        "device": str(session.model.device),
        "packages": {"gorp": gorp.__version__, **{name: package_version(name) for name in PACKAGES}},
    }


def _folder(session: Session) -> Path | None:
    """Folder of the YAML; paths in the record are relative to it."""
    return session.config.source and session.config.source.parent


def _task(session: Session, task: Task, lineage: Sequence[Version]) -> dict[str, Any]:
    """Describe a task's rows; for a task learned before, the training rows are taken from the parent's record."""
    if task.train is None or (lineage and task.name in lineage[-1].contains):
        before = (lineage or session.lineage)[-1].record["tasks"][task.name]
        trained = tuple(before.get(key) for key in TRAINED_ON)
    else:
        trained = (rows_fingerprint(task.train), session.train_files.get(task.name), len(task.train))
    return dict(zip(TRAINED_ON, trained, strict=True)) | {
        "eval_fingerprint": session.fingerprints[task.name],
        "source": portable_path(task.source, _folder(session)),
        "metric": task.metric,
        "labels": None if task.labels is None else list(task.labels),
        "eval_rows": len(task.eval),
        "notes": list(task.notes),
    }
