"""The YAML of a workspace as it is now, read without torch, for commands that load no model.

Only what decides whether it still describes this workspace is checked; `gorp train --dry-run` checks everything.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gorp.errors import ConfigError
from gorp.workspace.accepted import beside
from gorp.workspace.held import fits, held_once
from gorp.workspace.store import Workspace
from gorp.workspace.yaml_file import read_yaml


def present_yaml(store: Workspace, given: Path | None = None) -> tuple[Path | None, dict[str, Any] | None, str | None]:
    """Return the path of the YAML, its content, and None; if it cannot be used, None as content and the reason.

    Args:
        store: The workspace.
        given: The YAML that the user named; None for the one beside the workspace, or that of the last `gorp train`.

    Returns:
        The path, None if no YAML is known; the content; the reason, None without a path.

    Raises:
        CheckpointError: If the workspace is damaged.
    """
    accepted, source = store.accepted()
    path = given or beside(store.root) or source
    if path is None:
        return None, None, None
    if not path.is_file():
        return path, None, f"{path} no longer exists"
    try:
        block = read_yaml(path)
        _check(path, block, accepted, store)
    except ConfigError as error:
        return path, None, str(error)
    return path, block, None


def task_names(block: Mapping[str, Any]) -> list[str]:
    """Return the names of the tasks, in order; the rest of the entries is not checked.

    Raises:
        ConfigError: If there is no list of tasks, each with a name of its own.
    """
    tasks = block.get("tasks")
    if isinstance(tasks, Mapping):  # the short form for a published order
        from gorp.data import ORDERS

        return list(ORDERS.get(str(tasks.get("order")), ()))
    entries = [task for task in tasks if isinstance(task, Mapping)] if isinstance(tasks, list) else []
    names: list[Any] = [task.get("name") for task in entries]
    if not names or len(names) != len(set(map(str, names))) or not all(isinstance(name, str) for name in names):
        raise ConfigError("tasks: wanted a list of tasks, each with a different `name:`")
    return names


def _check(path: Path, block: Mapping[str, Any], accepted: Mapping[str, Any], store: Workspace) -> None:
    """Raise `ConfigError` if the YAML describes another run."""
    names, learned = task_names(block), store.current().contains
    if not isinstance(block.get("method"), Mapping) or block["method"].get("name") != accepted["method"]["name"]:
        raise ConfigError(f"{path} has another method than {accepted['method']['name']}")
    if not fits(names, learned, held_once(store)):
        raise ConfigError(f"{path} does not begin with the learned tasks, {', '.join(learned)}")
    if learned:
        _check_options(path, block, accepted)


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
