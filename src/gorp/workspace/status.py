"""Read the state of a workspace from its JSON files and the current YAML, without loading a model or rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gorp.errors import ConfigError
from gorp.evaluation import summary
from gorp.workspace.accepted import beside
from gorp.workspace.garbage import bytes_of, find
from gorp.workspace.scores import Scores, learned_part
from gorp.workspace.store import Workspace
from gorp.workspace.yaml_file import read_yaml


PROMISE = (
    *("leak", "leak_median", "leak_served", "leak_served_median", "leak_unmeasured"),
    *("capacity_mean", "capacity_max", "core_capacity_mean", "core_capacity_max"),
    *("rank_capacity_mean", "rank_capacity_max"),
    *("released", "released_energy", "left_out", "left_out_energy", "earlier"),
)
"""Keys of a version's record on protected directions, from the method's facts; None where the method has none."""

SHOWN = ("parent", "task", "contains", "created", *PROMISE, "leak_earlier", "footprint_bytes", "seconds")
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
        `current`; the `tasks` of the current YAML, those `pending`, and those whose training was `begun` but not
        finished; `matrix`; `measures` over the tasks learned so far; `remarks` on unusual files in the workspace;
        `notes` on the data; `warnings` of the current version about protected directions; `versions`, each with the
        keys of `SHOWN`; `config`, the YAML that the tasks were read from; and `problem`, the reason if it could not be
        used, else None. `made_by` is "protection" for a folder of `gorp.Protection`, which has no YAML; its `scores`,
        version -> name -> number, are what `evaluate=` returned, in its own units. `disk` has the bytes of the whole
        workspace and those that `gorp gc` would free; each version has its `disk_bytes`.

    Raises:
        CheckpointError: If `folder` is not a workspace or is damaged.
    """
    store = Workspace(folder)
    lineage = store.lineage()
    current = lineage[-1]
    accepted, source = store.accepted()
    path = None if current.is_protection else config or beside(store.root) or source
    tasks, problem = _tasks(path, accepted, current.contains)
    scores = Scores(store.root / "eval")
    matrix = scores.matrix(lineage, tasks)
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
        "pending": [task for task in tasks if task not in current.contains],
        "begun": sorted(path.parent.name for path in (store.root / "run").glob("*/identity.json")),
        "matrix": matrix.to_dict(),
        "measures": {} if part is None else summary(part),
        "remarks": [
            *store.remarks(),
            *scores.left_out(lineage, tasks),
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


def _tasks(path: Path | None, accepted: Mapping[str, Any], learned: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the tasks of the current YAML and None; if it cannot be used, those of the last run and the reason."""
    names = [task["name"] for task in accepted["tasks"]]
    if path is None:
        return names, None
    if not path.is_file():
        return names, f"{path} no longer exists"
    try:
        block = read_yaml(path)
        now = _names(block)
        if not isinstance(block.get("method"), Mapping) or block["method"].get("name") != accepted["method"]["name"]:
            raise ConfigError(f"{path} has another method than {accepted['method']['name']}")
        if now[: len(learned)] != list(learned):
            raise ConfigError(f"{path} does not begin with the learned tasks, {', '.join(learned)}")
        if learned:
            _check_options(path, block, accepted)
    except ConfigError as error:
        return names, str(error)
    return now, None


def _check_options(path: Path, block: Mapping[str, Any], accepted: Mapping[str, Any]) -> None:
    """Check that no option in the YAML differs from the one that the learned tasks were trained with.

    Only options written in the YAML are compared, not defaults; `gorp train --dry-run` compares everything.

    Raises:
        ConfigError: If one differs; the message names the first.
    """
    for name in ("method", "lora"):
        written, before = block.get(name) or {}, accepted.get(name) or {}
        for key, value in written.items() if isinstance(written, Mapping) else ():
            if key in before and value is not None and value != before[key]:
                from gorp.workspace.changes import free_options  # imports torch, so only if an option differs

                if key in free_options(accepted["method"]["name"])[name]:
                    continue
                raise ConfigError(f"{path}: {name}.{key} is {value!r}, and was {before[key]!r} when a task was learned")
    if block.get("seed", accepted["seed"]) != accepted["seed"]:
        raise ConfigError(f"{path}: seed is {block['seed']!r}, and was {accepted['seed']!r} when a task was learned")


def _names(block: Mapping[str, Any]) -> list[str]:
    """Return the names of the tasks, in order; only `gorp train --dry-run` checks the rest of the entries."""
    tasks = block.get("tasks")
    if isinstance(tasks, Mapping):  # the short form for a published order
        from gorp.data import ORDERS

        return list(ORDERS.get(str(tasks.get("order")), ()))
    entries = [task for task in tasks if isinstance(task, Mapping)] if isinstance(tasks, list) else []
    names: list[Any] = [task.get("name") for task in entries]
    if not names or len(names) != len(set(map(str, names))) or not all(isinstance(name, str) for name in names):
        raise ConfigError("tasks: wanted a list of tasks, each with a different `name:`")
    return names
