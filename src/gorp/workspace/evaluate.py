"""Score a version again with the current configuration."""

import os
from pathlib import Path
from typing import Any

from gorp.disk import disk_errors
from gorp.errors import ConfigError, nearest
from gorp.models.files import weights_sha256
from gorp.models.load import ModelConfig
from gorp.progress import Progress
from gorp.workspace.accepted import CONFIG, beside
from gorp.workspace.changes import check_settings
from gorp.workspace.config import RunConfig, load_config, parse_config
from gorp.workspace.guard import measure_guard
from gorp.workspace.held import held_once
from gorp.workspace.mark import check_place
from gorp.workspace.prepare import Session, prepare
from gorp.workspace.scoring import learned_digest, load_version, score_row, write_matrix
from gorp.workspace.store import Workspace
from gorp.workspace.version import Version


def evaluate_version(
    workspace: Path,
    *,
    version: str | None = None,
    task: str | None = None,
    source: Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a version again, even if it was scored before, and save the scores.

    The tasks and the `eval:` block are those of `present_configuration`.

    Args:
        workspace: Folder of the workspace.
        version: Name of the version; None for CURRENT.
        task: The task to score; None for all tasks.
        source: The YAML, if the user named one; None to find it.
        trust_remote_code: Whether Python code that comes with the model may run; see `present_configuration`.
        progress: Receives the progress.

    Returns:
        `version`, and `scores`: task -> score, rows, metric.

    Raises:
        ConfigError: For an unknown version or task.
        CheckpointError: If the version is damaged or its base model has changed.
    """
    store, progress = Workspace(workspace), progress or Progress()
    chosen = store.current() if version is None else store.version(version)
    chosen.check_trained_by_gorp("gorp eval")
    for line in store.remarks():
        progress.say(line)
    check_place(store.root)
    config = present_configuration(store, progress, source, trust_remote_code=trust_remote_code)
    names = [spec.name for spec in config.tasks]
    if task is not None and task not in names:
        raise ConfigError(f"no task `{task}` in {workspace}; there are {', '.join(names)}.{nearest(task, names)}")
    wanted = names if task is None else [task]
    session = prepare(config, store, progress, scored=wanted, guarded=task is None)
    with disk_errors(store.root):
        return _score(session, chosen, task, progress)


def _score(session: Session, chosen: Version, task: str | None, progress: Progress) -> dict[str, Any]:
    load_version(session, chosen)
    wanted = [item for item in session.tasks if task in (None, item.name)]
    cells = score_row(
        session, chosen.name, learned_digest(session, chosen.record["sha256"]), progress, tasks=wanted, fresh=True
    )
    measure_guard(session, chosen.name, chosen.record["sha256"], progress, fresh=True)
    write_matrix(session, session.workspace.lineage())
    return {"version": chosen.name, "scores": cells}


def present_configuration(
    store: Workspace, progress: Progress, given: Path | None = None, *, trust_remote_code: bool = False
) -> RunConfig:
    """Return the configuration in the current YAML, or the one of the last run if the YAML cannot be used.

    The YAML is `given`, or else the file beside the workspace with its name, or else that of the last `gorp train`. It
    cannot be used if it is missing, invalid, or does not fit the workspace, for example names another method or model.

    Args:
        store: The workspace.
        progress: Receives a line that names the file.
        given: The YAML that the user named, if any.
        trust_remote_code: Whether Python code that comes with the model may run. A YAML that the user named may allow
            it itself. The workspace may not, nor may a YAML that was found through it: both may be somebody else's.

    Raises:
        ConfigError: If the configuration asks to run code of the model, and that is not allowed.
        CheckpointError: If the workspace is damaged.
    """
    config, where = _found_configuration(store, progress, given)
    if config.model.trust_remote_code and not trust_remote_code and where != given:
        raise ConfigError(
            f"{where}: model.trust_remote_code is true, but you did not name this file. gorp runs code that comes "
            "with a model only if you allow it: give the YAML instead of the workspace, or add "
            "--trust-remote-code."
        )
    return config


def _found_configuration(store: Workspace, progress: Progress, given: Path | None) -> tuple[RunConfig, Path]:
    block, recorded = store.accepted()
    folder = recorded.parent if recorded else Path(os.path.realpath(store.root)).parent
    accepted, kept_in = parse_config(block, folder), store.root / CONFIG
    source = given or beside(store.root) or recorded
    if source is None or not source.is_file():
        progress.say(f"configuration: that of the last `gorp train` ({kept_in})")
        return accepted, kept_in
    try:
        now = load_config(source)
        if now.model.path != accepted.model.path and not _is_base(store, now.model):
            raise ConfigError(f"model.path is {now.model.path}, and was {accepted.model.path}.")
        check_settings(now, store.current(), held_once(store))
    except ConfigError as error:
        progress.say(f"the YAML is not used, because it no longer fits this workspace: {error}")
        progress.say(f"configuration: that of the last `gorp train` ({kept_in})")
        return accepted, kept_in
    progress.say(f"configuration: {source}")
    return now, source


def _is_base(store: Workspace, model: ModelConfig) -> bool:
    """Whether `model` is a folder with the base weights of the workspace, even at another path."""
    folder = Path(model.path)
    return folder.is_dir() and weights_sha256(folder) == store.current().record["base"]["sha256"]
