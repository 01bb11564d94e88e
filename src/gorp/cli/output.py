"""Check where a command may write its pages, tables and pictures, before it does the work."""

import os
from collections.abc import Mapping
from pathlib import Path

from gorp.errors import ConfigError
from gorp.workspace.mark import MARK


def check_outputs(files: Mapping[str, Path | None], endings: Mapping[str, str]) -> None:
    """Check that files can be written, and that nothing is lost by it.

    An older file is replaced only if its name has the ending of what is written; a workspace is never written to.

    Args:
        files: Option -> the file that it names, None if it is not given.
        endings: Option -> how the name of such a file ends, for example `.html`.

    Raises:
        ConfigError: If not; the message names the option, the file, and what to give instead.
    """
    seen: dict[Path, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        if str(path) == "-":
            raise ConfigError(
                f"{option} -: gorp writes this to a file, not to standard output. Give the name of a file, e.g. "
                f"page{endings[option]}."
            )
        if path.is_dir():
            example = path / f"page{endings[option]}"
            raise ConfigError(f"{option} {path}: this is a folder. Give the name of a file, e.g. {example}.")
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise ConfigError(f"{option} {path}: {nearest} is not a folder that can be written to. Give another path.")
        place = Path(os.path.realpath(path))
        for folder in place.parents:
            if (folder / MARK).is_file() or ((folder / "CURRENT").is_file() and (folder / "versions").is_dir()):
                raise ConfigError(
                    f"{option} {path}: this is inside the workspace {folder}, which holds only its own files. Give a "
                    "path outside of it."
                )
        if os.path.lexists(path) and path.suffix.lower() != endings[option]:
            raise ConfigError(
                f"{option} {path}: exists, and its name does not end in {endings[option]}, so it is not replaced. Give "
                "another name."
            )
        if place in seen:
            raise ConfigError(f"{option} {path}: the same file as {seen[place]}. Give each a name of its own.")
        seen[place] = option
