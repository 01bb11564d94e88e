"""What a workspace holds, read without loading a model or a task: JSON files, and the YAML as it is now."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gorp.errors import ConfigError
from gorp.evaluation import summary
from gorp.workspace.accepted import beside
from gorp.workspace.scores import Scores, learned_part
from gorp.workspace.store import Workspace
from gorp.workspace.yaml_file import read_yaml


PROMISE = (
    *("leak", "leak_median", "leak_served", "leak_served_median", "leak_unmeasured"),
    *("capacity_mean", "capacity_max", "core_capacity_mean", "core_capacity_max"),
    *("rank_capacity_mean", "rank_capacity_max"),
    *("released", "released_energy", "left_out", "left_out_energy", "earlier"),
)
"""What a version's record says of protected directions, from the method's facts; None where it has none."""

SHOWN = ("parent", "task", "contains", "created", *PROMISE, "leak_earlier", "footprint_bytes", "seconds")
"""What is told of each version, from its record."""


def status(folder: Path, *, config: Path | None = None) -> dict[str, Any]:
    """The state of a workspace as JSON values.

    Args:
        folder: The workspace.
        config: The YAML it is trained from; None for the one that `gorp train` took last.

    Returns:
        `current`; `tasks` of the YAML as it is now, those `pending`, and those whose training was `begun` but not
        finished; `matrix`; `measures` over the tasks learned so far; `remarks` on what is unusual in the workspace;
        `notes` on the rows; `warnings` of the current version on what is protected; `versions`, each with what `SHOWN`
        names; `config`, the YAML that the tasks were read from, and `problem`, why it was not, if so.

    Raises:
        CheckpointError: If `folder` is no workspace or is damaged.
    """
    store = Workspace(folder)
    lineage = store.lineage()
    current = lineage[-1]
    accepted, source = store.accepted()
    path = config or beside(store.root) or source
    tasks, problem = _tasks(path, accepted, current.contains)
    scores = Scores(store.root / "eval")
    matrix = scores.matrix(lineage, tasks)
    part = learned_part(matrix, len(current.contains))
    return {
        "workspace": str(store.root),
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
            *(f"{path} is not as it was written; `gorp eval` writes it anew" for path in scores.changed()),
        ],
        "notes": {name: task["notes"] for name, task in current.record["tasks"].items() if task["notes"]},
        "warnings": [*filter(None, [current.record.get("leak_unmeasured")]), *current.record.get("warnings", [])],
        "versions": [
            {"version": version.name} | {key: version.record.get(key) for key in SHOWN} for version in store.versions()
        ],
    }


def _tasks(path: Path | None, accepted: Mapping[str, Any], learned: Sequence[str]) -> tuple[list[str], str | None]:
    """The tasks of the YAML as it is now; those accepted last, and why, where the YAML cannot be used."""
    names = [task["name"] for task in accepted["tasks"]]
    if path is None:
        return names, None
    if not path.is_file():
        return names, f"{path} is no longer there"
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
    """Refuse what stands in the YAML and differs from what the learned tasks were learned with.

    It sees what is written there, not what a default became; `gorp train --dry-run` compares all of it.

    Raises:
        ConfigError: It names the first option.
    """
    for name in ("method", "lora"):
        written, before = block.get(name) or {}, accepted.get(name) or {}
        for key, value in written.items() if isinstance(written, Mapping) else ():
            if key in before and value is not None and value != before[key]:
                from gorp.workspace.changes import free_options  # it loads torch: only where something differs

                if key in free_options(accepted["method"]["name"])[name]:
                    continue
                raise ConfigError(f"{path}: {name}.{key} is {value!r}, and was {before[key]!r} when a task was learned")
    if block.get("seed", accepted["seed"]) != accepted["seed"]:
        raise ConfigError(f"{path}: seed is {block['seed']!r}, and was {accepted['seed']!r} when a task was learned")


def _names(block: Mapping[str, Any]) -> list[str]:
    """The names of the tasks, in order; whether the rest of them is right, `gorp train --dry-run` says."""
    tasks = block.get("tasks")
    if isinstance(tasks, Mapping):  # the short form for a published order
        from gorp.data import ORDERS

        return list(ORDERS.get(str(tasks.get("order")), ()))
    entries = [task for task in tasks if isinstance(task, Mapping)] if isinstance(tasks, list) else []
    names: list[Any] = [task.get("name") for task in entries]
    if not names or len(names) != len(set(map(str, names))) or not all(isinstance(name, str) for name in names):
        raise ConfigError("tasks: wanted a list of tasks, each with a `name:` of its own")
    return names
