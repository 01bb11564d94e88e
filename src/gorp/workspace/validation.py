"""Check a YAML and everything it names, and collect all problems instead of stopping at the first."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gorp.errors import ConfigError, GorpError
from gorp.progress import Progress
from gorp.workspace.check_rows import check_rows
from gorp.workspace.config import load_config, parse_config
from gorp.workspace.gate_config import read_gate
from gorp.workspace.pending import plan
from gorp.workspace.present import task_names
from gorp.workspace.store import Workspace
from gorp.workspace.yaml_file import read_yaml


LARGE = 256 * 2**20
"""Bytes of rows beyond which they are only read one by one, and not loaded as training does."""

LEAST: Mapping[str, Any] = {
    "model": {"path": "gorp-tiny-t5"},
    "method": {"name": "sequential_lora"},
    "tasks": [{"name": "task", "train": "task.jsonl"}],
}
"""A valid configuration, into which one block at a time is put to check it."""


def validate(path: Path, workspace: Path | None = None, *, progress: Progress | None = None) -> dict[str, Any]:
    """Check the YAML, the rows of the tasks that are not learned, and all that a dry run checks. Nothing is written.

    Args:
        path: The YAML.
        workspace: Folder of the workspace; None for the path without its ending.
        progress: Receives the progress, and the lines of the dry run.

    Returns:
        `config`, `tasks`, `problems`, `warnings`, and `invalid`, whether a problem is one of the configuration; without
        problems also `pending`, `trainable` and `parameters`, as far as the dry run was made.

    Raises:
        ConfigError: If the file is no YAML.
    """
    progress = progress or Progress()
    result: dict[str, Any] = {"config": str(path), "tasks": {}, "problems": [], "warnings": [], "invalid": False}
    problems = list(config_problems(read_yaml(path), path.resolve().parent))
    if problems:
        return result | {"problems": [f"{path}: {problem}" for problem in problems], "invalid": True}
    config, folder = load_config(path), path.with_suffix("") if workspace is None else workspace
    store = Workspace(folder)
    try:
        learned = store.current().contains if store.exists() else []
    except GorpError as error:
        return result | {"problems": [str(error)]}
    report = check_rows(config, [spec.name for spec in config.tasks if spec.name not in learned], store, progress)
    size = sum(part["bytes"] for task in report.tasks.values() for key in ("train", "eval") if (part := task.get(key)))
    if not report.problems and size > LARGE:
        report.warnings.append(
            f"the rows are {size / 2**30:.1f} GiB, so they were only read one by one. `gorp train` loads them whole, "
            "which takes several times that memory; `gorp train --dry-run` does too, and checks model and workspace"
        )
    elif not report.problems:
        try:
            pending, treatments, total = plan(config, folder, progress=progress)
            trainable = sum(item.trainable for item in treatments)
            result |= {"pending": pending, "trainable": trainable, "parameters": total}
        except GorpError as error:
            report.refuse(error)
    return result | report.to_dict() | {"invalid": report.invalid}


def config_problems(block: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yield what is wrong with each block of a configuration, and with each task; then what is wrong between them.

    Args:
        block: The values of the YAML.
        folder: Paths are relative to it.
    """
    found = 0
    together = {key: block[key] for key in ("method", "lora") if key in block}
    tasks = block.get("tasks")
    alone = [key for key in block if key not in ("method", "lora", "tasks", "gate")]
    each = [{key: block[key]} for key in alone] + [together]
    for part in each:
        if (problem := _problem({**LEAST, **part}, folder)) is not None:
            found += 1
            yield problem
    if (problem := _gate_problem(block)) is not None:
        found += 1
        yield problem
    for index, entry in enumerate(tasks if isinstance(tasks, list) else ()):
        if (problem := _problem({**LEAST, "tasks": [entry]}, folder)) is not None:
            found += 1
            yield problem.replace("tasks[0]", f"tasks[{index}]", 1)
    if not found and (problem := _problem(block, folder)) is not None:
        yield problem


def _gate_problem(block: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the `gate:` block, which may name tasks; nothing if their names are not known."""
    try:
        names = task_names(block)
    except ConfigError:
        return None
    try:
        read_gate(block.get("gate"), names)
    except ConfigError as error:
        return str(error)
    return None


def _problem(block: Mapping[str, Any], folder: Path) -> str | None:
    try:
        parse_config(block, folder)
    except ConfigError as error:
        return str(error)
    return None
