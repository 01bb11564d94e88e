"""Versions that the gate did not accept: which tasks wait for a decision, and where such tasks may stand in the YAML.

A version that is not accepted is complete and stays on the disk, but the next task is not trained from it. Its task is
*held* as long as it is not learned and the version that it was trained from is the current one or an ancestor of it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gorp.workspace.store import Version, Workspace


def held_versions(store: Workspace, lineage: Sequence[Version]) -> dict[str, list[Version]]:
    """Return the versions that hold a task, by task, the oldest first.

    Args:
        store: The workspace.
        lineage: The versions from v0 to the current one.
    """
    names, found = {version.name for version in lineage}, dict[str, list[Version]]()
    for version in store.versions():
        if not version.accepted and version.record["parent"] in names:
            found.setdefault(version.record["task"], []).append(version)
    return {task: versions for task, versions in found.items() if task not in lineage[-1].contains}


def maybe_held(store: Workspace, lineage: Sequence[Version]) -> dict[str, str]:
    """Return versions of which nobody can tell any more whether the gate held them: name -> task.

    They were trained from `lineage`, their task is not learned, and their version.json is gone.
    """
    names, gone = {version.name for version in lineage}, store.gone()
    return {
        event["version"]: event["task"]
        for event in store.ledger()
        if event["event"] == "version"
        and event["version"] in gone
        and event.get("parent") in names
        and event.get("task") not in (None, *lineage[-1].contains)
    }


def held_once(store: Workspace) -> set[str]:
    """Return the tasks of all versions that the gate did not accept."""
    return {version.record["task"] for version in store.versions() if not version.accepted}


def order_of_learning(names: Sequence[str], learned: Sequence[str]) -> list[str]:
    """Return the learned tasks in the order in which they were learned, then the other tasks of the YAML."""
    return [*learned, *(name for name in names if name not in learned)]


def promoted_anyway(store: Workspace, lineage: Sequence[Version]) -> dict[str, str]:
    """Return the versions of a lineage that were promoted although the gate did not accept them, with the reason."""
    last = {event.get("version"): event for event in store.ledger() if event["event"] == "promote"}
    moves = [(version.name, last[version.name]) for version in lineage if version.name in last]
    return {name: str(event.get("reason")) for name, event in moves if not event.get("accepted")}


def fits(names: Sequence[str], learned: Sequence[str], held: Collection[str]) -> bool:
    """Whether the tasks of a YAML may go on with the learned ones: none is missing, and no new one stands before them.

    A task that was ever held may stand anywhere: it was passed over, or learned later than its place.

    Args:
        names: The tasks of the YAML, in order.
        learned: The learned tasks, in the order of learning.
        held: The tasks that were ever held.
    """
    steady = [name for name in learned if name not in held]
    return set(learned) <= set(names) and [name for name in names if name not in held][: len(steady)] == steady


def held_facts(version: Version) -> dict[str, Any]:
    """Return what `gorp status` has on a held version.

    Returns:
        Its name as `version`; `verdict`; `against`, the version that it was trained from; `tasks`, those that decided;
        `guard`, whether the guard text did.
    """
    gate = version.record["gate"]
    tasks = [task for task, verdict in gate["tasks"].items() if verdict == gate["verdict"]]
    guard = (gate.get("guard") or {}).get("verdict") == "hold"
    return {
        "version": version.name,
        "verdict": gate["verdict"],
        "against": gate["against"],
        "tasks": tasks,
        "guard": guard,
    }


def why_held(facts: Mapping[str, Any]) -> str:
    """Return what a held version lost, as a phrase.

    Args:
        facts: The result of `held_facts`.
    """
    lost = "lost points on" if facts["verdict"] == "hold" else "may have lost on"
    parts = [f"{lost} {', '.join(facts['tasks'])}"] * bool(facts["tasks"])
    return " and ".join(parts + ["predicts the guard text worse"] * facts["guard"])


def held_in_use(store: Workspace, version: Version) -> list[str]:
    """Return a sentence for each version, from v0 to `version`, that the gate held and that is not in use.

    The current version and its ancestors are in use: somebody promoted them. Protection folders have no gate.
    """
    in_use = {each.name for each in store.lineage()}
    found = [each for each in store.lineage(version) if not each.accepted and each.name not in in_use]
    return [_held_sentence(each, of=version.name) for each in found]


def _held_sentence(version: Version, *, of: str) -> str:
    facts = held_facts(version)
    from_it = "" if version.name == of else f", and {of} was trained from it"
    return (
        f"{version.name} is held: with {version.record['task']} it {why_held(facts)}, so the gate says "
        f"{facts['verdict'].upper()} against {facts['against']}; it is not part of the current version{from_it}"
    )


def held_in_words(task: str, facts: Mapping[str, Any], *, current: str) -> str:
    """Return a sentence on a held task: why, and what can be done.

    Args:
        task: The task.
        facts: The result of `held_facts`.
        current: Name of the current version.
    """
    version, why = facts["version"], f"{facts['version']} {why_held(facts)}"
    promote = f', or take it as it is: `gorp promote --version {version} --anyway "REASON"`'
    return (
        f"{task}: held, because {why}; the current version is {current}. `gorp train` passes it over. Change its rows "
        f"(or use --restart) to train it again, remove it from the YAML{promote if current == facts['against'] else ''}"
    )
