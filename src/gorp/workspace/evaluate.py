"""Score a version again, as the configuration is now."""

from pathlib import Path
from typing import Any

from gorp.errors import ConfigError, nearest
from gorp.progress import Progress
from gorp.workspace.changes import check_settings
from gorp.workspace.config import RunConfig, load_config, parse_config
from gorp.workspace.prepare import prepare
from gorp.workspace.scoring import delta_digest, enter, score_row, write_matrix
from gorp.workspace.store import Workspace


def evaluate_version(
    workspace: Path,
    *,
    version: str | None = None,
    task: str | None = None,
    source: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a version again, whatever was measured before, and keep the scores.

    The tasks and the `eval:` block are those of `present_configuration`.

    Args:
        workspace: Its folder.
        version: CURRENT when None.
        task: All tasks when None.
        source: The YAML; None for the one that `gorp train` took last.
        progress: What to show.

    Returns:
        `version`, and `scores`: task -> score, rows, metric.

    Raises:
        ConfigError: For an unknown version or task.
        CheckpointError: If the version or its base model is not as it was.
    """
    store, progress = Workspace(workspace), progress or Progress()
    chosen = store.current() if version is None else store.version(version)
    config = present_configuration(store, progress, source)
    names = [spec.name for spec in config.tasks]
    if task is not None and task not in names:
        raise ConfigError(f"no task `{task}` in {workspace}; there are {', '.join(names)}.{nearest(task, names)}")
    session = prepare(config, store, progress)
    enter(session, chosen)
    wanted = [item for item in session.tasks if task in (None, item.name)]
    cells = score_row(session, chosen.name, delta_digest(chosen), progress, tasks=wanted, fresh=True)
    write_matrix(session, store.lineage())
    return {"version": chosen.name, "scores": cells}


def present_configuration(store: Workspace, progress: Progress, given: Path | None = None) -> RunConfig:
    """The YAML that the workspace was trained from, as it is now; where that is gone or fits no more, as it was then.

    It fits no more when it was made into the configuration of another workspace: another method, another model.
    """
    block, source = store.accepted()
    source = given or source
    accepted = parse_config(block, store.root)
    if source is None or not source.is_file():
        return accepted
    try:
        now = load_config(source)
        if now.model != accepted.model:
            raise ConfigError(f"model.path is {now.model.path}, and was {accepted.model.path}.")
        check_settings(now, store.current())
    except ConfigError as error:
        progress.say(f"not used, because it no longer fits this workspace: {error}")
        progress.say(f"used instead: the configuration that `gorp train` accepted last ({store.root / 'config.json'})")
        return accepted
    return now
