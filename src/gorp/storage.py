"""Files that are either whole or absent: written under a temporary name, synced, renamed.

Tensors go into safetensors, everything else into JSON. Nothing here is ever a pickle. The same content gives the same
bytes. torch is imported when the first tensor is read or written: commands that only look at JSON start at once.
"""

import json
import os
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gorp.disk import LEFTOVER, disk_errors
from gorp.errors import CheckpointError


if TYPE_CHECKING:
    from torch import Tensor


def write_atomic(path: Path, *parts: bytes | memoryview) -> None:
    """Write the bytes of `parts` so that a reader sees the old file, or the new one, and never a part.

    The bytes are synced before the rename and the folder after it, so the promise holds through a power cut. The
    temporary name is random and must not exist, so no link that somebody put there is followed.

    Raises:
        CheckpointError: If the disk refuses.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".gorp-{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            with open(descriptor, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes left directly in `folder`; nobody may be writing there."""
    with disk_errors(folder):
        for path in folder.iterdir() if folder.is_dir() else ():
            if LEFTOVER.fullmatch(path.name) and not path.is_dir():
                path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; `CheckpointError` names the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. Was the folder moved, or the run never finished?") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits
        raise CheckpointError(f"{path}: not a whole JSON file ({error}). Restore it from a copy.") from None


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, Any]) -> None:
    """Write `tensors` as safetensors; each value of `metadata` becomes JSON text in the header.

    Tensors may share memory, one of them under two names for example: each is written in full under its own name.
    """
    from safetensors.torch import save

    whole: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        whole[name] = tensor.clone() if storage in storages else tensor  # safetensors refuses memory that is shared
        storages.add(storage)
    write_atomic(path, *_sorted_header(save(whole, {key: json.dumps(value) for key, value in metadata.items()})))


def _sorted_header(content: bytes) -> tuple[bytes, memoryview]:
    """The file with the keys of its metadata in order; safetensors writes them in an order of chance.

    Eight bytes hold the header's length n, then come n bytes of JSON, then the tensors, at a multiple of eight bytes.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = dict(sorted(header.pop("__metadata__", {}).items()))
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, memoryview(content)[end:]


def read_tensors(path: Path, *, only: Collection[str] | None = None) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """The tensors of a safetensors file, on the CPU, and its metadata; the inverse of `write_tensors`.

    They are copies in memory of torch's own: a file's tensors lie at odd addresses, and there a matrix product rounds
    otherwise than at even ones, so that a resumed run would drift from the unbroken one in its last bits.

    Args:
        path: The file.
        only: Names of the tensors to read, of those that the file has; None: all.
    """
    with _opened(path) as file:
        metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
        names = [name for name in file.keys() if only is None or name in only]
        return {name: file.get_tensor(name).clone() for name in names}, metadata


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors of a safetensors file, of which only the header is read."""
    with _opened(path) as file:
        return list(file.keys())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; what is wrong with it is a `CheckpointError`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. Was the folder moved, or the run never finished?") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}). Restore it from a copy.") from None
