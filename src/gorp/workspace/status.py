"""Read the state of a workspace from its JSON files and the current YAML, without loading a model or rows."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gorp.errors import CheckpointError
from gorp.evaluation import summary
from gorp.storage import file_sha256, read_json
from gorp.workspace.garbage import bytes_of, find
from gorp.workspace.gate_words import guard_warnings
from gorp.workspace.held import held_facts, held_versions, order_of_learning, promoted_anyway
from gorp.workspace.present import present_yaml, task_names
from gorp.workspace.scores import Scores, learned_part
from gorp.workspace.seal import is_sealed
from gorp.workspace.store import Version, Workspace


PROMISE = (
    *("leak", "leak_median", "leak_served", "leak_served_median", "leak_unmeasured"),
    *("capacity_mean", "capacity_max", "core_capacity_mean", "core_capacity_max"),
    *("rank_capacity_mean", "rank_capacity_max"),
    *("released", "released_energy", "left_out", "left_out_energy", "earlier"),
)
"""Keys of a version's record on protected directions, from the method's facts; None where the method has none."""

BEGUN = ("*/identity.json", "*/checkpoint-*")
"""What is in the folder `run` of a workspace while a task's training has begun and is not finished."""

SHOWN = ("parent", "task", "contains", "created", "gate", *PROMISE, "leak_earlier", "footprint_bytes", "seconds")
"""Keys of a version's record that `status` returns."""


def only_adapter(task: str) -> str:
    """Return the warning on a task that was begun from an adapter without rows (`Protection.from_adapter`)."""
    return (
        f"{task}: begun from an adapter without rows, so only the input directions that the adapter reads are "
        "protected, not the task's inputs; later tasks may change its outputs, whatever the leak is"
    )


def status(folder: Path, *, config: Path | None = None) -> dict[str, Any]:
    """Return the state of a workspace as JSON values.

    Args:
        folder: The workspace.
        config: The YAML it is trained from; None for that of the last `gorp train`.

    Returns:
        `current`; the `tasks` of the current YAML, those `pending`, those `held` with why (see `held.held_facts`), and
        those whose training was `begun` but not finished; `anyway`, the versions that were promoted although the gate
        did not accept them, with the reason; `matrix`, with its columns in the order of learning; `measures` over the
        tasks learned so far; `remarks` on unusual files in the workspace and a clear loss on the guard text; `notes` on
        the data; `warnings` of the current version about protected directions; `versions`, each with the keys of
        `SHOWN`; `config`, the YAML that the tasks were read from; and `problem`, the reason if it could not be used,
        else None. `made_by` is
        "protection" for a folder of `gorp.Protection`, which has no YAML; its `scores`, version -> name -> number, are
        what `evaluate=` returned, in its own units. `disk` has the bytes of the whole workspace and those that
        `gorp gc` would free; each version has its `disk_bytes`.

    Raises:
        CheckpointError: If `folder` is not a workspace or is damaged.
    """
    store = Workspace(folder)
    lineage = store.lineage()
    current = lineage[-1]
    accepted, _ = store.accepted()
    path, block, problem = (None, None, None) if current.is_protection else present_yaml(store, config)
    tasks = [task["name"] for task in accepted["tasks"]] if block is None else task_names(block)
    held = _held(held_versions(store, lineage), tasks, _training_files(path, block))
    scores, columns = Scores(store.root / "eval"), order_of_learning(tasks, current.contains)
    matrix = scores.matrix(lineage, columns)
    part = learned_part(matrix, len(current.contains))
    return {
        "workspace": str(store.root),
        "made_by": current.record.get("made_by"),
        "config": None if path is None else str(path),
        "problem": problem,
        "current": current.name,
        "contains": current.contains,
        "base": current.record["base"],
        "method": accepted["method"]["name"],
        "tasks": tasks,
        "pending": [task for task in tasks if task not in current.contains and task not in held],
        "held": {task: held_facts(version) for task, version in held.items()},
        "anyway": promoted_anyway(store, lineage),
        "begun": sorted({path.parent.name for kind in BEGUN for path in (store.root / "run").glob(kind)}),
        "matrix": matrix.to_dict(),
        "measures": {} if part is None else summary(part),
        "remarks": [
            *store.missing(),
            *store.remarks(),
            *scores.lost(lineage),
            *scores.left_out(lineage, columns),
            *_worse_on_guard(store, current),
            *(f"{path} was changed after it was written; `gorp eval` writes it again" for path in scores.changed()),
        ],
        "notes": {name: task["notes"] for name, task in current.record["tasks"].items() if task["notes"]},
        "scores": {v.name: v.record["metrics"]["scores"] for v in lineage[1:]} if current.is_protection else {},
        "warnings": [
            *(only_adapter(v.record["task"]) for v in lineage if v.record.get("protected_from") == "adapter"),
            *filter(None, [current.record.get("leak_unmeasured")]),
            *current.record.get("warnings", []),
        ],
        "disk": {"bytes": bytes_of(store.root), "gc_would_free": sum(item.bytes for item in find(store))},
        "versions": [
            {"version": version.name, "disk_bytes": bytes_of(version.folder)}
            | {key: version.record.get(key) for key in SHOWN}
            for version in store.versions()
        ],
    }


def _worse_on_guard(store: Workspace, current: Version) -> list[str]:
    """Return the warning on the guard text that the kept evidence on a version gives."""
    path = store.root / "eval" / "gate" / f"{current.name}-{current.record['parent']}.json"
    if not path.is_file():
        return []
    with suppress(CheckpointError):  # `gorp doctor` names a damaged file
        found = read_json(path)
        return guard_warnings(found) if is_sealed(found) else []
    return []


def _held(
    versions: Mapping[str, Sequence[Version]], tasks: Sequence[str], files: Mapping[str, Path]
) -> dict[str, Version]:
    """Return the held tasks of the YAML, each with the newest version that holds it.

    A version whose training file has another digest now does not count. Rows are not read, so a change of
    `limit_train` or of a folder is found only by `gorp train`.
    """
    found = {}
    for task in (task for task in tasks if task in versions):
        now = file_sha256(files[task]) if task in files else None
        for version in versions[task]:
            if now is None or version.record["tasks"][task].get("train_sha256") in (None, now):
                found[task] = version
    return found


def _training_files(path: Path | None, block: Mapping[str, Any] | None) -> dict[str, Path]:
    """Return the existing training files that a YAML names, by task."""
    entries = (block or {}).get("tasks")
    named = {task["name"]: task.get("train") for task in entries} if isinstance(entries, list) else {}
    files = {
        task: path.parent / Path(train).expanduser() for task, train in named.items() if path and isinstance(train, str)
    }
    return {task: file for task, file in files.items() if file.is_file()}
