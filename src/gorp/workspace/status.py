"""What a workspace holds, read without loading a model or a task."""

from pathlib import Path
from typing import Any

from gorp.evaluation import summary
from gorp.workspace.scores import Scores, learned_part
from gorp.workspace.store import Workspace


def status(folder: Path) -> dict[str, Any]:
    """The state of a workspace as JSON values.

    Returns:
        `current`; `tasks`, those `pending`, and those whose training was `begun` but not finished; `matrix`; `measures`
        over the tasks learned so far; `notes` on their rows; `versions`, each with parent, task, leak, capacity,
        footprint in bytes, seconds of training.

    Raises:
        CheckpointError: If `folder` is no workspace or is damaged.
    """
    store = Workspace(folder)
    lineage = store.lineage()
    current = lineage[-1]
    config, _ = store.accepted()
    tasks = [task["name"] for task in config["tasks"]]
    matrix = Scores(store.root / "eval").matrix(lineage, tasks)
    part = learned_part(matrix, len(current.contains))
    shown = ("parent", "task", "contains", "created", "leak", "capacity_mean", "capacity_max", "footprint_bytes")
    return {
        "workspace": str(store.root),
        "current": current.name,
        "base": current.record["base"],
        "method": config["method"]["name"],
        "tasks": tasks,
        "pending": [task for task in tasks if task not in current.contains],
        "begun": sorted(path.parent.name for path in (store.root / "run").glob("*/identity.json")),
        "matrix": matrix.to_dict(),
        "measures": {} if part is None else summary(part),
        "notes": {name: task["notes"] for name, task in current.record["tasks"].items() if task["notes"]},
        "versions": [
            {"version": version.name} | {key: version.record.get(key) for key in (*shown, "seconds")}
            for version in store.versions()
        ],
    }
