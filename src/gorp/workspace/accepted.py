"""The configuration of the last run, saved with paths relative to its YAML, so that the project folder may move.

It is saved as config.json in the workspace, with the path of the YAML relative to the workspace.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gorp.errors import CheckpointError
from gorp.storage import read_json, write_json
from gorp.workspace.seal import is_whole, sealed


CONFIG = "config.json"


def portable_path(path: str, folder: Path | None) -> str:
    """Return an absolute path relative to `folder`, with a leading dot; unchanged if they share only the root folder.

    Args:
        path: A path; one that is not absolute, for example the id of a hub model, is returned unchanged.
        folder: Folder of the YAML; None if there is no YAML, and then `path` is returned unchanged.
    """
    if folder is None or not os.path.isabs(path):
        return path
    start = os.path.realpath(folder)
    if os.path.commonpath([path, start]) == os.path.sep:
        return path
    relative = os.path.relpath(path, start)
    return relative if relative.startswith("..") or relative == "." else f"./{relative}"


def portable(values: Mapping[str, Any], source: Path | None) -> dict[str, Any]:
    """Return the values of `effective` with paths relative to the folder of the YAML `source`."""
    folder = None if source is None else source.parent
    tasks = [
        task | {key: task[key] and portable_path(task[key], folder) for key in ("train", "eval")}
        for task in values["tasks"]
    ]
    model = values["model"] | {"path": portable_path(values["model"]["path"], folder)}
    gate = dict(values.get("gate") or {})
    if gate.get("guard") is not None:
        gate["guard"] = portable_path(gate["guard"], folder)
    return {**values, "model": model, "tasks": tasks, "gate": gate}


def keep_configuration(root: Path, values: Mapping[str, Any], source: Path | None) -> None:
    """Save a configuration, unless it is saved already.

    Args:
        root: Folder of the workspace.
        values: The result of `effective`.
        source: The YAML that it was read from, if any.
    """
    where = None if source is None else os.path.relpath(os.path.realpath(source), os.path.realpath(root))
    kept = sealed({"source": where, "config": portable(values, source)})
    path = root / CONFIG
    if not path.is_file() or read_json(path) != kept:
        write_json(path, kept)


def kept_configuration(root: Path) -> tuple[dict[str, Any], Path | None] | None:
    """Return the saved configuration and the path of its YAML; None if no configuration is saved.

    Raises:
        CheckpointError: If the file is damaged.
    """
    path = root / CONFIG
    if not path.is_file():
        return None
    found = read_json(path)
    if (
        not isinstance(found, dict)
        or not is_whole(found)
        or not isinstance(found.get("config"), dict)
        or not isinstance(found.get("source", 0), str | None)
    ):
        raise CheckpointError(f"{path}: damaged or changed. Remove it; `gorp train` writes it again.")
    place = Path(os.path.realpath(root))
    source = found["source"] and Path(os.path.normpath(place / found["source"]))
    if source and os.path.isabs(found["source"]) and (place.parent / source.name).is_file():
        source = place.parent / source.name  # gorp 0.1.0 saved an absolute path, which is wrong in a copied project
    return found["config"], source


def beside(root: Path) -> Path | None:
    """Return the YAML whose default workspace this is: beside it and of the same name; None if there is none."""
    place = Path(os.path.realpath(root))
    paths = [place.with_name(place.name + suffix) for suffix in (".yaml", ".yml")]
    return next((path for path in paths if path.is_file()), None)
