"""Compare two versions of a workspace: scores, answers, weights, protected directions, settings. Nothing is written."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from gorp.errors import CheckpointError, ConfigError
from gorp.evaluation.paired import Flips, interval
from gorp.workspace.base_files import BaseFiles
from gorp.workspace.changed_weights import changed_weights
from gorp.workspace.changes import differences
from gorp.workspace.flips import flipped, paired
from gorp.workspace.guard_values import compare_guard, guard_path
from gorp.workspace.scores import Scores
from gorp.workspace.store import Version, Workspace


CAPACITY = ("capacity_mean", "capacity_max")


def diff(
    workspace: Path, old: str | None = None, new: str | None = None, *, source: Path | None = None
) -> dict[str, Any]:
    """Return how two versions differ. No model is loaded; answers and weights are read from the files of the versions.

    Args:
        workspace: Folder of the workspace.
        old: The version to compare with; None for the one that the new one was trained from.
        new: The other version, which may be on another branch; None for CURRENT.
        source: The YAML that the user named, if any; it says where the base model is.

    Returns:
        `made_by`, as `status` has it; `old` and `new`: version, sha256, task, contains, created, capacity. `ancestor`,
        the newest version that both come from; `left` and `gained`, the versions after it up to the old and the new
        one. `tasks`: task -> score of both, `difference` in points with its 95 % `interval` (Tango), rows, rows `lost`
        and `won`, `flipped` (those that turned wrong first), and `problem` if the answers cannot be compared, else
        None. `guard`: None, or see `compare_guard`; `guard_problem`: why None though one was scored on the guard text.
        `weights`: see `changed_weights`. `together`: `changed` weights, their joint `norm` and `relative` change, the
        worst and the median `leak`, the largest `cosine`, directions `released` with their energy. `base`: why there
        is no relative change, else None. `settings` and `packages`: lists of key, old and new value.

    Raises:
        ConfigError: If a version does not exist, or both are the same.
        CheckpointError: If a file of a version is missing or damaged.
    """
    store = Workspace(workspace)
    after = store.current() if new is None else store.version(new)
    name = after.record["parent"] if old is None else old
    if name is None:
        raise ConfigError(f"{after.name} is the base model; there is no version before it. Name two versions.")
    before = store.version(name)
    if before.name == after.name:
        raise ConfigError(f"both versions are {after.name}. Name two different versions.")
    mine, other = (store.lineage(version) for version in (after, before))
    known = {version.name for version in other}
    gained = [version for version in mine if version.name not in known]
    left = [version for version in other if version.name not in {each.name for each in mine}]
    base = BaseFiles(store, after, source=source)
    weights = changed_weights(before, after, gained, base)
    return {
        "workspace": str(store.root),
        "made_by": after.record.get("made_by"),
        "old": _version(before),
        "new": _version(after),
        "ancestor": mine[len(mine) - len(gained) - 1].name,
        "left": [version.name for version in left],
        "gained": [version.name for version in gained],
        "tasks": _tasks(store, before, after),
        **_guard(store, before, after),
        "weights": weights,
        "together": _together(weights),
        "base": base.problem,
        "settings": _changed(_by_task(before.record["config"]), _by_task(after.record["config"])),
        "packages": _changed(before.record.get("packages", {}), after.record.get("packages", {})),
    }


def _version(version: Version) -> dict[str, Any]:
    record = version.record
    return {
        "version": version.name,
        "sha256": version.sha256,
        "task": record["task"],
        "contains": version.contains,
        "created": record.get("created"),
        **{key: record.get(key) for key in CAPACITY},
    }


def _tasks(store: Workspace, old: Version, new: Version) -> dict[str, dict[str, Any]]:
    """Return the comparison of each task that either version has learned or that both were scored on."""
    scores = Scores(store.root / "eval")
    rows = [scores.cells.get(version.name, {}) for version in (old, new)]
    learned = dict.fromkeys([*new.contains, *old.contains])
    return {task: _task(scores, task, old, new) for task in [*learned, *(t for t in rows[1] if t in rows[0])]}


def _guard(store: Workspace, old: Version, new: Version) -> dict[str, Any]:
    """Return the comparison on the guard text, and why there is none though one of the two was scored on it."""
    try:
        return {"guard": compare_guard(store.root / "eval", old.name, new.name, None), "guard_problem": None}
    except CheckpointError as error:
        scored = any(guard_path(store.root / "eval", version.name).exists() for version in (old, new))
        return {"guard": None, "guard_problem": str(error) if scored else None}


def _task(scores: Scores, task: str, old: Version, new: Version) -> dict[str, Any]:
    cells = [_score(scores, version, task) for version in (old, new)]
    facts: dict[str, Any] = {
        "old": cells[0],
        "new": cells[1],
        "learned": [task in version.contains for version in (old, new)],
        **dict.fromkeys(("difference", "interval", "rows", "lost", "won")),
        "flipped": [],
        "problem": None,
    }
    if old.is_protection:
        facts["problem"] = "a protection folder keeps no answers; the scores are those that `evaluate=` returned"
        return facts
    try:
        pairs = paired(scores, task, old.name, new.name)
    except CheckpointError as error:
        facts["problem"] = str(error)
        return facts
    flips = Flips.of([a["correct"] for a, _ in pairs], [b["correct"] for _, b in pairs])
    low, high = interval(flips)
    return facts | {
        "difference": -100 * flips.drop + 0.0,  # + 0.0: never -0.0
        "interval": [-100 * high, -100 * low],
        "rows": flips.rows,
        "lost": flips.lost,
        "won": flips.won,
        "flipped": flipped(pairs),
    }


def _score(scores: Scores, version: Version, task: str) -> float | None:
    if version.is_protection:
        return version.record["metrics"]["scores"].get(task)
    cell = scores.cells.get(version.name, {}).get(task)
    return None if cell is None else cell["score"]


def _together(weights: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    changed = [facts for facts in weights.values() if facts["norm"] > 0]
    sizes = [facts["weight_norm"] for facts in changed]
    norm, whole = math.hypot(*(facts["norm"] for facts in changed)), math.hypot(*(size or 0.0 for size in sizes))
    leaks = [facts["leak"] for facts in changed if facts["leak"] is not None]
    return {
        "changed": len(changed),
        "norm": norm,
        "relative": norm / whole if whole and None not in sizes else None,
        "leak": max(leaks, default=None),
        "leak_median": median(leaks) if leaks else None,
        "cosine": max((facts["cosines"][0] for facts in changed if facts["cosines"]), default=None),
        "released": sum(facts["released"] for facts in weights.values()),
        "released_energy": math.fsum(facts["released_energy"] for facts in weights.values()),
    }


def _by_task(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with its list of tasks as a mapping, so that each task is compared with itself."""
    tasks: Sequence[Mapping[str, Any]] = config.get("tasks", [])
    return {**config, "tasks": {task["name"]: task for task in tasks}}


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "old": a, "new": b} for key, a, b in differences(old, new)]
