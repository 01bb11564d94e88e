"""Remove what a workspace no longer needs (`garbage`).

First the ledger says what is removed; from then on a version does not exist. Then its folder goes, then its scores and
answers. A killed removal therefore leaves a whole workspace, and the next one finishes it.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from gorp.disk import LEFTOVER
from gorp.errors import ConfigError
from gorp.storage import remove_leftovers
from gorp.workspace.garbage import EVAL, JOINT, Item, find
from gorp.workspace.lock import holder_of
from gorp.workspace.mark import GONE, check_place
from gorp.workspace.scores import SCORES_LOCK, Scores
from gorp.workspace.status import status
from gorp.workspace.store import Workspace


def collect(
    workspace: Path, *, unlisted: bool = False, source: Path | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """Remove what the workspace no longer needs.

    Args:
        workspace: Folder of the workspace.
        unlisted: Also remove the unfinished trainings of tasks that the YAML no longer lists.
        source: The YAML, for `unlisted`; None for that of the last `gorp train`.
        dry_run: Remove nothing.

    Returns:
        `removed`, with path, why and bytes of each item, `bytes` in total, and `dry_run`.

    Raises:
        ConfigError: If `unlisted` is set and the YAML cannot be used.
        CheckpointError: If the workspace is damaged, has links in it, or another process writes there.
    """
    store = Workspace(workspace)
    store.lineage()  # raises if this is no whole workspace, before anything is written
    check_place(store.root)
    left = _left_tasks(store, source) if unlisted else ()
    items = find(store, unlisted=left)
    if not dry_run and (items or _has_stale_locks(store)):
        swept = [item for item in items if _is_swept(item)]  # the lock removes these
        with store.writing():
            items = [*find(store, unlisted=left), *swept]
            _remove(store, items)
    total = sum(item.bytes for item in items)
    return {"removed": [item.to_dict() for item in items], "bytes": total, "dry_run": dry_run}


def _has_stale_locks(store: Workspace) -> bool:
    """Whether a killed process has left the file of a lock; whoever takes the lock next removes it."""
    holder = holder_of(store.root)
    return (holder is not None and not holder[1]) or (holder is None and (store.root / "eval" / SCORES_LOCK).exists())


def _is_swept(item: Item) -> bool:
    """Whether `mark.writing` removes it: a leftover directly in the workspace or in `versions`."""
    path = Path(item.path)
    temporary = LEFTOVER.fullmatch(path.name) is not None and path.parent in (Path("."), Path("versions"))
    return temporary or path.name.startswith(GONE)


def _remove(store: Workspace, items: Collection[Item]) -> None:
    store.check_held()
    known = store.removed()
    for item in items:
        if item.version not in known and not (item.version and item.path.startswith("eval")):
            store.log("removed", **item.to_dict())
    for item in items:
        path = store.root / item.path
        if item.version is not None and item.path.startswith("eval"):
            Scores(store.root / "eval").drop([item.version])
        elif path.parent in (store.root / "versions", store.root / "run") and not LEFTOVER.fullmatch(path.name):
            store.remove(path)
    remove_leftovers(store.root / "run")
    if (store.root / "eval").is_dir():
        with Scores(store.root / "eval").writing():  # `gorp eval` may be writing there
            for name in EVAL:
                remove_leftovers(store.root / name)


def _left_tasks(store: Workspace, source: Path | None) -> list[str]:
    """Return the tasks with an unfinished training that the YAML does not list."""
    state = status(store.root, config=source)
    if state["problem"] or state["config"] is None:
        raise ConfigError(
            f"the tasks that are listed are not known: {state['problem'] or 'there is no YAML'}. Name the YAML instead "
            "of the workspace."
        )
    names = {JOINT, *state["tasks"], *state["contains"]}
    return [path.name for path in sorted((store.root / "run").glob("*")) if path.is_dir() and path.name not in names]
