"""The configuration that a run began with, kept so that the project may move: every path is relative to its YAML.

config.json stands in the workspace; it says where the YAML lies, seen from there.
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
    """An absolute path as it is seen from `folder`, beginning with a dot; unchanged where only the root is common.

    Args:
        path: Anything else than an absolute path, the id of a hub model for example, stays as it is.
        folder: Of the YAML; None for a configuration that has none, whose paths stay.
    """
    if folder is None or not os.path.isabs(path):
        return path
    start = os.path.realpath(folder)
    if os.path.commonpath([path, start]) == os.path.sep:
        return path
    relative = os.path.relpath(path, start)
    return relative if relative.startswith("..") or relative == "." else f"./{relative}"


def portable(values: Mapping[str, Any], source: Path | None) -> dict[str, Any]:
    """What `effective` gives of a configuration, its paths as they are seen from the YAML `source`."""
    folder = None if source is None else source.parent
    tasks = [
        task | {key: task[key] and portable_path(task[key], folder) for key in ("train", "eval")}
        for task in values["tasks"]
    ]
    model = values["model"] | {"path": portable_path(values["model"]["path"], folder)}
    return {**values, "model": model, "tasks": tasks}


def keep_configuration(root: Path, values: Mapping[str, Any], source: Path | None) -> None:
    """Keep a configuration, if it is not the one that is kept.

    Args:
        root: Of the workspace.
        values: What `effective` gives.
        source: The YAML that it was read from, if any.
    """
    where = None if source is None else os.path.relpath(os.path.realpath(source), os.path.realpath(root))
    kept = sealed({"source": where, "config": portable(values, source)})
    path = root / CONFIG
    if not path.is_file() or read_json(path) != kept:
        write_json(path, kept)


def kept_configuration(root: Path) -> tuple[dict[str, Any], Path | None] | None:
    """What `keep_configuration` kept last: the configuration, and where its YAML lies; None where it kept nothing.

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
        raise CheckpointError(f"{path}: not the configuration that was kept. Remove it; `gorp train` writes it again.")
    place = Path(os.path.realpath(root))
    source = found["source"] and Path(os.path.normpath(place / found["source"]))
    if source and os.path.isabs(found["source"]) and (place.parent / source.name).is_file():
        source = place.parent / source.name  # version 0.1.0 kept an absolute path; a copied project is not where it was
    return found["config"], source


def beside(root: Path) -> Path | None:
    """The YAML that `gorp train` would make this workspace from without `--workspace`; None if there is none."""
    place = Path(os.path.realpath(root))
    paths = [place.with_name(place.name + suffix) for suffix in (".yaml", ".yml")]
    return next((path for path in paths if path.is_file()), None)
