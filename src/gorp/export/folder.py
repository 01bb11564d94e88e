"""Where an export may be written. The folder is built beside its place and renamed, so it is complete or absent.

gorp-export.json    the mark: what was exported, and the SHA-256 of every other file; only a folder with it is replaced
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gorp.disk import disk_errors
from gorp.errors import CheckpointError, ConfigError
from gorp.storage import file_sha256, read_json, sync_folder, write_json


MARK = "gorp-export.json"
MADE_BY = "gorp export"


def check_out(out: Path, *, force: bool, sources: Mapping[str, Path]) -> None:
    """Check that a folder may be written, or replaced with `force`. Nothing is written.

    Args:
        out: The folder; it need not exist. An empty folder is used.
        force: Whether a folder that gorp exported may be replaced.
        sources: What is read, in words -> its folder. The export must not be in it or contain it.

    Raises:
        ConfigError: If it may not; the message says what is there and what to do.
    """
    place, other = Path(os.path.realpath(out)), "Give another folder."
    for what, source in sources.items():
        resolved = Path(os.path.realpath(source))
        if place.is_relative_to(resolved) or resolved.is_relative_to(place):
            raise ConfigError(f"{out}: this is inside {what} ({source}), or contains it. {other}")
    if place == Path(os.path.realpath(os.curdir)):
        raise ConfigError(f"{out}: this is the current folder, which cannot be replaced by a rename. {other}")
    if os.path.islink(out):
        raise ConfigError(f"{out}: this is a link; wanted a folder that is new or empty. {other}")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: this is a file; wanted a folder that is new or empty. {other}")
    for parent in out.parents:
        if parent.exists() and not parent.is_dir():
            raise ConfigError(f"{out}: cannot be created, because {parent} is a file. {other}")
    found = sorted(os.listdir(out)) if out.is_dir() else []
    if not found:
        return
    if not _is_export(out):
        some = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise ConfigError(
            f"{out}: the folder holds other files ({some}) and is not an export of gorp (no {MARK}), so it is not "
            f"replaced, not even with --force. {other}"
        )
    if not force:
        raise ConfigError(f"{out}: there is an earlier export. Replace it with --force, or give another folder.")
    if others := _others(out):
        raise ConfigError(
            f"{out}: the folder holds `{others[0]}`, which the earlier export did not write; --force would delete it. "
            f"Move it away, or give another folder."
        )
    if edited := _edited(out):
        raise ConfigError(
            f"{out}: `{edited[0]}` was changed after the earlier export wrote it; --force would delete the change. "
            "Move it away, or give another folder."
        )


def check_space(out: Path, size: int) -> None:
    """Raise CheckpointError if the disk of `out` has less than `size` bytes free."""
    place = Path(os.path.abspath(out)).parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size:
        raise CheckpointError(
            f"{out}: the export takes {size / 1e6:,.0f} MB, but {place} has {free / 1e6:,.0f} MB free. Free some "
            "space, or give a folder on another disk."
        )


@contextmanager
def building(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield a new folder beside `out`; if the block succeeds, it is synced and takes the place of `out`.

    After an error nothing is left: neither the new folder, nor parents that were made for it, and an earlier export at
    `out` is whole. After a kill, the folder `.gorp-….tmp` is left; it can be deleted.

    Raises:
        ConfigError: If `out` was filled by another process meanwhile.
        CheckpointError: If the disk cannot be written.
    """
    out = Path(os.path.abspath(out))
    made = [path for path in out.parents if not path.exists()]
    temporary = _beside(out)
    try:
        with disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            mode = temporary.stat().st_mode & 0o666  # safetensors makes files that only their owner reads
            for folder, _, names in os.walk(temporary):
                for name in names:
                    (Path(folder) / name).chmod(mode)
                    _sync(Path(folder) / name)
                sync_folder(Path(folder))
            check_out(out, force=force, sources={})
            _put(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in made:
            try:
                path.rmdir()
            except OSError:  # not empty: the export is there
                break


def write_mark(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write `MARK` with `facts` and the size and SHA-256 of every other file; return its content."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MARK
    }
    content = {"format": 1, "made_by": MADE_BY, **facts, "files": files}
    write_json(folder / MARK, content)
    return content


def _put(temporary: Path, out: Path) -> None:
    """Rename `temporary` to `out`. A full folder there is renamed first and deleted when the new one is in place."""
    old = None
    if out.is_dir() and any(out.iterdir()):
        old = _beside(out)
        os.rename(out, old)
    try:
        os.rename(temporary, out)
    except OSError:
        if old is not None:
            os.rename(old, out)
        raise
    sync_folder(out.parent)
    if old is not None:
        shutil.rmtree(old)


def _beside(out: Path) -> Path:
    """Return a new name in the same folder, which `gorp.disk.LEFTOVER` matches."""
    return out.parent / f".gorp-{secrets.token_hex(8)}.tmp"


def _is_export(folder: Path) -> bool:
    try:
        found = read_json(folder / MARK)
    except CheckpointError:
        return False
    return isinstance(found, dict) and found.get("made_by") == MADE_BY and isinstance(found.get("files"), dict)


def _others(folder: Path) -> list[str]:
    """Return the files that the export in `folder` did not write."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
    return sorted(names - {MARK, *read_json(folder / MARK)["files"]})


def _edited(folder: Path) -> list[str]:
    """Return the files that somebody has edited, such as a licence filled in; weights are not read for that."""
    files = {name: item["sha256"] for name, item in read_json(folder / MARK)["files"].items()}
    texts = [name for name in files if not name.endswith(".safetensors") and (folder / name).is_file()]
    return sorted(name for name in texts if file_sha256(folder / name) != files[name])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
