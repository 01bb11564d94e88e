"""Score a version again, as the configuration is now."""

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
from gorp.workspace.mark import check_place
from gorp.workspace.prepare import Session, prepare
from gorp.workspace.scoring import enter, learned_digest, score_row, write_matrix
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
    """Score a version again, whatever was measured before, and keep the scores.

    The tasks and the `eval:` block are those of `present_configuration`.

    Args:
        workspace: Its folder.
        version: CURRENT when None.
        task: All tasks when None.
        source: The YAML, where the user named one; None for the one that is found.
        trust_remote_code: Whether Python code that comes with the model may run; see `present_configuration`.
        progress: What to show.

    Returns:
        `version`, and `scores`: task -> score, rows, metric.

    Raises:
        ConfigError: For an unknown version or task.
        CheckpointError: If the version or its base model is not as it was.
    """
    store, progress = Workspace(workspace), progress or Progress()
    chosen = store.current() if version is None else store.version(version)
    for line in store.remarks():
        progress.say(line)
    check_place(store.root)
    config = present_configuration(store, progress, source, trust_remote_code=trust_remote_code)
    names = [spec.name for spec in config.tasks]
    if task is not None and task not in names:
        raise ConfigError(f"no task `{task}` in {workspace}; there are {', '.join(names)}.{nearest(task, names)}")
    session = prepare(config, store, progress, scored=names if task is None else [task])
    with disk_errors(store.root):
        return _score(session, chosen, task, progress)


def _score(session: Session, chosen: Version, task: str | None, progress: Progress) -> dict[str, Any]:
    enter(session, chosen)
    wanted = [item for item in session.tasks if task in (None, item.name)]
    cells = score_row(
        session, chosen.name, learned_digest(session, chosen.record["sha256"]), progress, tasks=wanted, fresh=True
    )
    write_matrix(session, session.workspace.lineage())
    return {"version": chosen.name, "scores": cells}


def present_configuration(
    store: Workspace, progress: Progress, given: Path | None = None, *, trust_remote_code: bool = False
) -> RunConfig:
    """The YAML of the workspace as it is now; where that is gone or fits no more, the configuration as it was then.

    It is the one that was given, or else the one beside the workspace and of its name, or else the one that `gorp
    train` took last. It fits no more when it was made into the configuration of another workspace: another method,
    another model.

    Args:
        store: The workspace.
        progress: Told which file is read.
        given: The YAML that the user named, if any.
        trust_remote_code: Whether Python code that comes with the model may run. A YAML that the user named says so
            itself. The workspace cannot, nor can a YAML that was found through it: both may be somebody else's.

    Raises:
        ConfigError: If the model is configured to bring code of its own, and that is not trusted.
        CheckpointError: If the workspace is damaged.
    """
    config, where = _found_configuration(store, progress, given)
    if config.model.trust_remote_code and not trust_remote_code and where != given:
        raise ConfigError(
            f"{where}: model.trust_remote_code is true, but `gorp eval` found that file by itself. Code that comes "
            "with a model runs only where you say so: name the YAML in place of the workspace, or give "
            "--trust-remote-code."
        )
    return config


def _found_configuration(store: Workspace, progress: Progress, given: Path | None) -> tuple[RunConfig, Path]:
    block, recorded = store.accepted()
    folder = recorded.parent if recorded else Path(os.path.realpath(store.root)).parent
    accepted, kept_in = parse_config(block, folder), store.root / CONFIG
    source = given or beside(store.root) or recorded
    if source is None or not source.is_file():
        progress.say(f"configuration: the one that `gorp train` accepted last ({kept_in})")
        return accepted, kept_in
    try:
        now = load_config(source)
        if now.model.path != accepted.model.path and not _is_base(store, now.model):
            raise ConfigError(f"model.path is {now.model.path}, and was {accepted.model.path}.")
        check_settings(now, store.current())
    except ConfigError as error:
        progress.say(f"not used, because it no longer fits this workspace: {error}")
        progress.say(f"used instead: the configuration that `gorp train` accepted last ({kept_in})")
        return accepted, kept_in
    progress.say(f"configuration: {source}")
    return now, source


def _is_base(store: Workspace, model: ModelConfig) -> bool:
    """Whether a folder holds the weights that the workspace was made with, at whatever place."""
    folder = Path(model.path)
    return folder.is_dir() and weights_sha256(folder) == store.current().record["base"]["sha256"]
