"""Which workspace a command means: its folder, or the YAML that it is trained from."""

from pathlib import Path

from gorp.errors import CheckpointError, nearest


YAML = (".yaml", ".yml")


def place(path: Path) -> tuple[Path, Path | None]:
    """The folder of the workspace that `path` means, and the YAML where it was given as one.

    Args:
        path: A workspace, or the YAML that `gorp train` takes: its workspace lies beside it, named as
            it is without `.yaml`.

    Raises:
        CheckpointError: If there is no workspace, with the command that would find or make one.
    """
    given = path if path.is_file() and path.suffix in YAML else None
    folder = path if given is None else path.with_suffix("")
    if _is_workspace(folder):
        return folder, given
    if given is not None:
        raise CheckpointError(
            f"{folder}: no gorp workspace beside {given.name}. `gorp train {given}` makes one; if it lies elsewhere, "
            "give its folder."
        )
    if path.is_file():
        raise CheckpointError(f"{path}: a file; wanted the folder of a workspace, or the YAML it is trained from.")
    raise CheckpointError(f"{path}: no gorp workspace (no file CURRENT in it). {_advice(path)}")


def _is_workspace(folder: Path) -> bool:
    return (folder / "CURRENT").is_file() or (folder / "versions").is_dir()


def _advice(path: Path) -> str:
    """What to type instead."""
    beside = next((yaml for yaml in (Path(f"{path}{end}") for end in YAML) if yaml.is_file()), None)
    if beside is not None:
        return f"`gorp train {beside}` makes it."
    around = path if path.is_dir() else path.parent
    there = sorted(item.parent for item in around.glob("*/CURRENT")) if around.is_dir() else []
    if not path.exists() and (close := nearest(path.name, [item.name for item in there])):
        return close.strip()
    if there:
        return f"There are: {', '.join(map(str, there[:5]))}. For example `gorp status {there[0]}`."
    yamls = sorted(item for end in YAML for item in around.glob(f"*{end}")) if around.is_dir() else []
    return f"`gorp train {yamls[0] if len(yamls) == 1 else 'CONFIG.yaml'}` makes one."
