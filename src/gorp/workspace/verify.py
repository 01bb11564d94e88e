"""Compute the evidence of a gate again from the files of its workspace, and compare."""

import json
from math import isclose
from pathlib import Path
from typing import Any

from gorp.errors import CheckpointError
from gorp.storage import read_json
from gorp.workspace.gate import evidence_of
from gorp.workspace.guard_values import compare_guard
from gorp.workspace.seal import is_sealed
from gorp.workspace.store import Workspace


INFORMING = {
    "certainty": (1e-6, 1e-9),
    "leaks": (1e-3, 1e-6),
    "noise": (0.0, 0.0),
    "guard": (1e-6, 1e-9),
    "guard_base": (1e-6, 1e-9),
}
"""Parts of the evidence that do not decide the verdict or were added later -> relative and absolute tolerance of
`verify`. A leak of 1e-7 is rounding of float32, which another machine does in another order."""


def verify(path: Path) -> dict[str, Any]:
    """Compute the verdict of an evidence file again, from the workspace that it lies in.

    Raises:
        CheckpointError: If the file is damaged, or anything that it says differs from what the files give now; the
            message names it.
    """
    kept = read_json(path)
    if not is_sealed(kept):
        raise CheckpointError(f"{path}: damaged or changed: not the evidence of a gate as gorp wrote it.")
    store = Workspace(path.parent.parent.parent)
    new, old = (store.version(kept[which]["version"]) for which in ("new", "old"))
    margins = {task: kept["margin"] for task in old.contains} if "margin" in kept else kept["margins"]
    counts = kept.get("noise")
    if counts is not None:
        margins = {task: facts["margin"] for task, facts in counts.items()}
    guard = kept.get("guard")
    if guard is not None:
        guard = compare_guard(store.root / "eval", old.name, new.name, guard["margin"])
    if kept.get("guard_base") is not None:  # raises with the name of the file if the base model's losses are damaged
        compare_guard(store.root / "eval", store.lineage(new)[0].name, new.name, None)
    now = evidence_of(store, new, old, margins, counts, guard)
    unlike = {"gorp", "margins"} if "margin" in kept else {"gorp"}  # older evidence has one margin for all tasks
    unlike |= {key for key in INFORMING if key not in kept}  # and none of these
    for key, value in json.loads(json.dumps(now)).items():
        if key not in unlike and not _alike(kept.get(key), value, *INFORMING.get(key, (0.0, 0.0))):
            raise CheckpointError(
                f"{path}: `{key}` is not what the files of the workspace give now. Something was changed or scored "
                "again since; `gorp gate` makes new evidence."
            )
    return {**now, "path": str(path)}


def _alike(kept: Any, now: Any, relative: float, absolute: float) -> bool:
    """Whether two JSON values are equal, floats to within a tolerance."""
    if isinstance(kept, dict) and isinstance(now, dict):
        return kept.keys() == now.keys() and all(_alike(kept[key], now[key], relative, absolute) for key in kept)
    if isinstance(kept, list) and isinstance(now, list):
        return len(kept) == len(now) and all(_alike(a, b, relative, absolute) for a, b in zip(kept, now, strict=True))
    if isinstance(kept, float) and isinstance(now, float):
        return isclose(kept, now, rel_tol=relative, abs_tol=absolute)
    return kept == now
