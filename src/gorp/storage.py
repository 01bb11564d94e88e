"""Write files atomically (temporary name, sync, rename), and read them.

Tensors are stored as safetensors, everything else as JSON; pickle is never used. The same content always gives the same
bytes. torch is imported when the first tensor is read or written, so commands that only read JSON start fast.
"""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gorp.disk import LEFTOVER, disk_errors
from gorp.errors import CheckpointError
from gorp.permissions import file_mode, make_folder


if TYPE_CHECKING:
    from torch import Tensor


WITHOUT_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)
"""Error codes of a file system that does not support hard links."""


def write_atomic(path: Path, *parts: bytes | memoryview, mode: int | None = None) -> None:
    """Write the bytes of `parts` to `path`. A reader sees the old file or the new one, never a part of it.

    The bytes are synced before the rename and the folder after it, so this also holds after a power failure. The
    temporary name is random and must not exist, so a link that someone placed there is never followed.

    Args:
        path: The file.
        parts: Its content.
        mode: Its permissions; None for those that a new file gets.

    Raises:
        CheckpointError: If the operating system reports an error.
    """
    with disk_errors(path), _temporary(path, parts, mode) as temporary:
        os.replace(temporary, path)


def create_atomic(path: Path, *parts: bytes | memoryview) -> bool:
    """Write a new file as `write_atomic` does; return False if there is one already, which is then left as it is.

    Raises:
        CheckpointError: If the operating system reports an error.
    """
    with disk_errors(path), _temporary(path, parts, None) as temporary:
        try:
            os.link(temporary, path)  # a rename would replace a file that another process has written meanwhile
        except OSError as error:
            if os.path.lexists(path):  # also if the process that wrote it has removed this temporary file
                return False
            if error.errno not in WITHOUT_LINKS:
                raise
            os.replace(temporary, path)
    return True


@contextmanager
def _temporary(path: Path, parts: Collection[bytes | memoryview], mode: int | None) -> Iterator[Path]:
    """Yield a synced file with the content of `path`, in the same folder, which is synced afterwards."""
    make_folder(path.parent)
    temporary = path.with_name(f".gorp-{_of_file(path)}{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, file_mode(path.parent))
    try:
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(descriptor, mode)
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _of_file(path: Path) -> str:
    """Return the part of a temporary name that says which file it is to become: 8 hexadecimal digits."""
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes directly in `folder`. No process may be writing there."""
    with disk_errors(folder):
        for path in folder.iterdir() if folder.is_dir() else ():
            if LEFTOVER.fullmatch(path.name) and not path.is_dir():
                path.unlink(missing_ok=True)


def remove_leftovers_of(path: Path) -> None:
    """Remove the temporary files that killed processes left when they wrote `path`; no process may be writing it.

    Other temporary files of that folder stay: it may be one in which other processes write other files.
    """
    with disk_errors(path):
        for other in path.parent.glob(f".gorp-{_of_file(path)}*.tmp"):
            if LEFTOVER.fullmatch(other.name) and not other.is_dir():
                other.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        CheckpointError: If the file is missing.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing, but its version was saved with it. Restore it from a copy.") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; raise `CheckpointError` with its name if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(_missing(path)) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or an integer with thousands of digits
        raise CheckpointError(f"{path}: not a whole JSON file ({error}). Restore it from a copy.") from None


def _missing(path: Path) -> str:
    return f"{path}: no such file. Check whether the folder was moved, or the run has not finished."


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, Any]) -> None:
    """Write `tensors` as safetensors; each value of `metadata` becomes JSON text in the header.

    Tensors may share memory, for example one tensor under two names; each is written completely under its own name.
    """
    from safetensors.torch import save

    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if storage in storages else tensor  # safetensors refuses shared memory
        storages.add(storage)
    write_atomic(path, *_sorted_header(save(separate, {key: json.dumps(value) for key, value in metadata.items()})))


def _sorted_header(content: bytes) -> tuple[bytes, memoryview]:
    """Return the file with sorted metadata keys; safetensors writes them in random order.

    Format: eight bytes with the header's length n, n bytes of JSON, and the tensors at a multiple of eight bytes.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = dict(sorted(header.pop("__metadata__", {}).items()))
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, memoryview(content)[end:]


def read_tensors(path: Path, *, only: Collection[str] | None = None) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Read the tensors of a safetensors file, on the CPU, and its metadata; the inverse of `write_tensors`.

    The tensors are copied into memory that torch allocated. Tensors in a file are not aligned, and matrix products of
    unaligned tensors round differently, so a resumed run would differ from an uninterrupted one in the last bits.

    Args:
        path: The file.
        only: Names of the tensors to read; names that the file does not have are ignored. None: all tensors.
    """
    with _opened(path) as file:
        metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
        names = [name for name in file.keys() if only is None or name in only]
        return {name: file.get_tensor(name).clone() for name in names}, metadata


def tensor_names(path: Path) -> list[str]:
    """Return the names of the tensors of a safetensors file; only its header is read."""
    with _opened(path) as file:
        return list(file.keys())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; raise `CheckpointError` if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(_missing(path)) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}). Restore it from a copy.") from None
