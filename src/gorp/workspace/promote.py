"""Make a later version the current one: one that the gate held, or that a rollback left.

The version is compared with the current one by the gate. It becomes the current one if the gate accepts it, or if the
user gives a reason, which is kept in the ledger.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from gorp.errors import ConfigError
from gorp.workspace.gate import gate
from gorp.workspace.gate_config import present_gate
from gorp.workspace.store import Version, Workspace


LONGEST_REASON = 500
"""Most characters of a reason."""


def promote(
    workspace: Path,
    *,
    version: str | None = None,
    anyway: str | None = None,
    source: Path | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Compare a later version with the current one, and make it the current one if the gate accepts it.

    Args:
        workspace: Folder of the workspace.
        version: Name of the version, one that was trained from the current one or from a descendant of it; None for the
            newest such.
        anyway: Why the version becomes the current one whatever the verdict is; kept in the ledger.
        source: The YAML that the user named, if any; its `gate:` block has the margins.
        dry_run: Compare, and write nothing.

    Returns:
        `version`, `from`, `accepted` by the gate, `moved`, the tasks `learned` with it, the reason as `anyway`, and the
        evidence as `gate`.

    Raises:
        ConfigError: If there is no such version, it was not trained from the current one, or the reason is not usable.
        CheckpointError: If a version is damaged, an answer is missing, or another process writes.
    """
    reason = None if anyway is None else _reason(anyway)
    store = Workspace(workspace)
    store.current().check_trained_by_gorp("gorp promote")
    with nullcontext() if dry_run else store.writing():
        current = store.current()
        target = _target(store, current, version)
        for each in _between(store, current, target):
            each.verify(current.record["base"]["sha256"])
        settings = present_gate(store, source)
        found = gate(
            store.root,
            version=target.name,
            against=current.name,
            settings=settings,
            dry_run=dry_run,
        )
        accepted = settings.accepts(found["verdict"])
        moves = (accepted or reason is not None) and not dry_run
        if moves:
            facts = {"before": current.name, "verdict": found["verdict"], "accepted": accepted}
            store.move(target, event="promote", **facts, **({} if reason is None else {"reason": reason}))
    return {
        "version": target.name,
        "from": current.name,
        "accepted": accepted,
        "moved": moves,
        "learned": [task for task in target.contains if task not in current.contains],
        "anyway": reason,
        "gate": found,
    }


def _reason(text: str) -> str:
    """Return the reason without blanks around it.

    Raises:
        ConfigError: If it is empty, too long, or not text.
    """
    reason = text.strip()
    if not reason:
        raise ConfigError("--anyway is empty; give the reason, which is kept in the ledger.")
    if len(reason) > LONGEST_REASON:
        raise ConfigError(f"--anyway has {len(reason):,} characters; a reason has at most {LONGEST_REASON}.")
    try:
        reason.encode()
    except UnicodeEncodeError:
        raise ConfigError("--anyway is not UTF-8; write the reason in UTF-8.") from None
    return reason


def _target(store: Workspace, current: Version, name: str | None) -> Version:
    """Return the version to move to."""
    versions = {each.name: each for each in store.versions()}
    later = [each for each in versions.values() if current.name in _ancestors(each, versions)]
    if name is None and not later:
        raise ConfigError(
            f"{store.root}: no version was trained from the current one, {current.name}, so there is none to promote."
        )
    if name is None:
        return later[-1]
    target = store.version(name)
    if name not in {each.name for each in later}:
        if name == current.name:
            raise ConfigError(f"{name} is the current version already.")
        if name in {each.name for each in store.lineage()}:
            raise ConfigError(
                f"{name} comes before the current version, {current.name}. `gorp rollback` goes back to it."
            )
        names = ", ".join(each.name for each in later) or "no version"
        raise ConfigError(
            f"{name} was not trained from the current version, {current.name}; {names} was. Its ancestors are "
            f"{', '.join(_ancestors(target, versions))}: go back to one of them first (`gorp rollback`)."
        )
    return target


def _ancestors(version: Version, versions: Mapping[str, Version]) -> list[str]:
    """Return the versions that `version` was trained from, the newest first, up to one that is missing."""
    found, parent = list[str](), version.record["parent"]
    while parent is not None:  # ends: a parent has a smaller number
        found.append(parent)
        parent = versions[parent].record["parent"] if parent in versions else None
    return found


def _between(store: Workspace, current: Version, target: Version) -> list[Version]:
    """Return the versions after `current` up to `target`: all of them are needed to train the next task."""
    lineage = store.lineage(target)
    return lineage[[each.name for each in lineage].index(current.name) + 1 :]
