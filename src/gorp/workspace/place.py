"""Find the workspace that a command-line argument means: its folder, or the YAML that it is trained from."""

from pathlib import Path

from gorp.errors import CheckpointError, nearest


YAML = (".yaml", ".yml")


def place(path: Path) -> tuple[Path, Path | None]:
    """Return the folder of the workspace that `path` means, and the YAML if `path` is one.

    Args:
        path: A workspace, or the YAML of `gorp train`, whose workspace is the folder beside it with the same name
            without `.yaml`; or the current folder, with exactly one workspace in it.

    Raises:
        CheckpointError: If there is no workspace; the message gives a command that finds or creates one.
    """
    given = path if path.is_file() and path.suffix in YAML else None
    folder = path if given is None else path.with_suffix("")
    if path == Path() and not _is_workspace(path) and len(inside := workspaces_in(path)) == 1:
        yamls = [yaml for end in YAML if (yaml := Path(f"{inside[0]}{end}")).is_file()]
        return inside[0], yamls[0] if len(yamls) == 1 else None
    if _is_workspace(folder):
        return folder, given
    if given is not None:
        raise CheckpointError(
            f"{folder}: there is no gorp workspace beside {given.name}. `gorp train {given}` creates one; if it is "
            "elsewhere, give its folder."
        )
    if path.is_file():
        raise CheckpointError(f"{path}: this is a file; wanted the folder of a workspace, or its YAML.")
    raise CheckpointError(f"{path}: not a gorp workspace (no file CURRENT in it). {_advice(path)}")


def _is_workspace(folder: Path) -> bool:
    return (folder / "CURRENT").is_file() or (folder / "versions").is_dir()


def workspaces_in(folder: Path) -> list[Path]:
    """Return the workspaces directly in a folder, by name."""
    return sorted(item.parent for item in folder.glob("*/CURRENT")) if folder.is_dir() else []


def _advice(path: Path) -> str:
    """Return a sentence that says what to type instead."""
    beside = next((yaml for yaml in (Path(f"{path}{end}") for end in YAML) if yaml.is_file()), None)
    if beside is not None:
        return f"`gorp train {beside}` creates it."
    around = path if path.is_dir() else path.parent
    workspaces = workspaces_in(around)
    if not path.exists() and (close := nearest(path.name, [item.name for item in workspaces])):
        return close.strip()
    if workspaces:
        return f"Name one of the workspaces here: {', '.join(map(str, workspaces[:5]))}."
    yamls = sorted(item for end in YAML for item in around.glob(f"*{end}")) if around.is_dir() else []
    return f"`gorp train {yamls[0] if len(yamls) == 1 else 'CONFIG.yaml'}` creates one."
