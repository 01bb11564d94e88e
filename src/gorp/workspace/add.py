"""Append a task to the YAML of a run, after its rows were checked against the model and against all other tasks."""

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from gorp.data.source import is_file
from gorp.disk import disk_errors
from gorp.errors import ConfigError, GorpError
from gorp.progress import Progress
from gorp.rows.report import Report
from gorp.storage import remove_leftovers_of, write_atomic
from gorp.workspace.changes import check_settings
from gorp.workspace.check_rows import check_rows
from gorp.workspace.config import RunConfig, parse_config
from gorp.workspace.held import held_once
from gorp.workspace.lock import alone
from gorp.workspace.place import YAML
from gorp.workspace.store import Workspace
from gorp.workspace.yaml_entry import flow_entry, insert_task
from gorp.workspace.yaml_file import parse_yaml, read_text


def add_task(
    path: Path,
    name: str,
    train: str,
    *,
    evaluation: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    eval_split: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Check a task's rows and append the task to `tasks:` of a YAML.

    The file is replaced as a whole, and only if it then holds the old values and the task. Comments and layout stay.

    Args:
        path: The YAML.
        name: Name of the task.
        train: A file, relative to the current folder; a folder; or the id of a hub data set.
        evaluation: The same for the eval rows; None: they are split off train, or `eval_split` is used.
        subset: As in `TaskSpec`.
        split: As in `TaskSpec`.
        eval_split: As in `TaskSpec`.
        dry_run: Check everything and write nothing.
        progress: Receives the progress of the checks.

    Returns:
        `config`, `task`, `entry`, `written`, and `tasks`, `problems`, `warnings` as in `gorp.rows.report`. If
        there are problems, nothing is written; `invalid` says whether one is of the configuration.

    Raises:
        ConfigError: If the YAML is invalid, or the task cannot be inserted; the message says why.
    """
    progress, folder = progress or Progress(), path.resolve().parent
    text = read_text(path)
    block = parse_yaml(text, path)
    optional = {"subset": subset, "split": split, "eval_split": eval_split}
    named = {"name": name, "train": _written(train, folder)}
    named |= {} if evaluation is None else {"eval": _written(evaluation, folder)}
    entry = named | {key: value for key, value in optional.items() if value is not None}
    before = _parsed(block, path).tasks if block.get("tasks") else ()
    if there := [spec for spec in before if spec.name == name]:
        raise ConfigError(
            f"{path}: there is a task `{name}` already, with the rows of {there[0].train}. Nothing was changed. Give "
            "the new task another name, or edit its line in the file."
        )
    written = insert_task(text, entry, str(path))
    config = _parsed(parse_yaml(written, path), path)
    assert config.tasks[:-1] == before
    store = Workspace(path.with_suffix(""))
    report = check_rows(config, [name], store, progress)
    _check_workspace(config, store, report)
    if not report.problems and not dry_run:
        _replace(path, text, written)
    return {
        "config": str(path),
        "task": name,
        "entry": flow_entry(entry),
        "written": not report.problems and not dry_run,
        "invalid": report.invalid,
        **report.to_dict(),
    }


def find_config(folder: Path) -> Path:
    """Return the only YAML in a folder.

    Raises:
        ConfigError: If there is none, or more than one; the message names them.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix in YAML and path.is_file())
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError("there is no YAML in this folder. `gorp init MODEL` writes one, or name yours with --config.")
    named = ", ".join(path.name for path in found[:5]) + ", …" * (len(found) > 5)
    raise ConfigError(f"this folder has several YAMLs ({named}). Name one with --config.")


def written_path(path: str | Path, folder: Path) -> str:
    """Return a path as a YAML in `folder` names it: relative if it is inside, absolute if not."""
    absolute = os.path.abspath(path)
    for base in (os.path.abspath(folder), os.path.realpath(folder)):
        if os.path.commonpath([absolute, base]) == base:
            return Path(os.path.relpath(absolute, base)).as_posix()
    return absolute


def _written(source: str, folder: Path) -> str:
    return written_path(source, folder) if is_file(source) or os.path.isdir(source) else source


def _parsed(block: dict[str, Any], path: Path) -> RunConfig:
    try:
        return replace(parse_config(block, path.resolve().parent), source=path.resolve())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_workspace(config: RunConfig, store: Workspace, report: Report) -> None:
    """Add what `gorp train` would refuse in a workspace that exists already."""
    if not store.exists():
        return
    try:
        check_settings(config, store.current(), held_once(store))
    except GorpError as error:
        report.refuse(error)


def _replace(path: Path, old: str, new: str) -> None:
    """Write the new text in place of the old one.

    Raises:
        ConfigError: If the file was changed since it was read.
    """
    target = path.resolve()  # a link stays a link
    changed = ConfigError(f"{path}: was changed while the rows were read. Run the same command again.")
    with disk_errors(target):
        try:
            with alone(target):
                if read_text(target) != old:
                    raise changed
                remove_leftovers_of(target)
                write_atomic(target, new.encode(), mode=stat.S_IMODE(target.stat().st_mode))
        except FileNotFoundError:
            raise changed from None
