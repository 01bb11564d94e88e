"""The log of a workspace: one JSON event per line, each chained to all lines before it.

    {"time": ..., "event": "prepared", "version": "v1", "sha256": ..., "chain": ...}    before the rename of v1
    {"time": ..., "event": "version", "version": "v1", ..., "sha256": ..., "chain": ...}    after CURRENT names it
    {"time": ..., "event": "removed", "version": "v1", "why": ..., "chain": ...}            before `gorp gc` deletes v1

`sha256` is that of the version's version.json, which holds those of its other files. `chain` is
SHA-256(chain of the line before, this line without its chain), so a changed, missing or swapped line is detected at the
next one. gorp 0.1.0 wrote lines without either; such lines may only come first.
"""

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gorp.disk import disk_errors
from gorp.errors import CheckpointError
from gorp.permissions import file_mode, make_folder
from gorp.workspace.seal import digest


VERSION_NAME = re.compile(r"v(0|[1-9][0-9]{0,8})")
"""v0, v1, ..."""
SHA256 = re.compile(r"[0-9a-f]{64}")


class Ledger:
    """The file `ledger.jsonl`.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: tuple[bytes, list[tuple[dict[str, Any], bool]]] = b"", []
        """The content that was checked last, and its events: a command asks for them hundreds of times."""

    def events(self) -> list[dict[str, Any]]:
        """Return all events without their chains; an incomplete last line is ignored.

        Raises:
            CheckpointError: If a line is damaged.
        """
        return [event for event, _ in self._read()]

    def whole_events(self) -> tuple[list[dict[str, Any]], str | None]:
        """Return the events before the first damaged line, and what is wrong with it; None if no line is damaged."""
        events: list[dict[str, Any]] = []
        try:
            for event, _ in self._lines(self._content()):
                events.append(event)
        except CheckpointError as error:
            return events, str(error)
        return events, None

    def entered(self) -> dict[str, str | None]:
        """Return the completed versions in order: name -> SHA-256 of version.json, None if the event has none.

        Removed versions are included, because their names are never used again.
        """
        return {e["version"]: e.get("sha256") for e in self.events() if e["event"] == "version"}

    def removed(self) -> dict[str, str]:
        """Return the versions that `gorp gc` has removed: name -> when."""
        events = (event for event in self.events() if event["event"] == "removed" and "version" in event)
        return {event["version"]: str(event.get("time")) for event in events}

    def prepared(self) -> tuple[str, str] | None:
        """Return name and SHA-256 of the last event if it is a `prepared` event: its version may be complete or not."""
        last = (self.events() or [{"event": None}])[-1]
        return (last["version"], last["sha256"]) if last["event"] == "prepared" else None

    def is_chained(self) -> bool:
        """Whether any line has a chain; lines of gorp 0.1.0 have none."""
        return any(chained for _, chained in self._read())

    def append(self, event: str, **facts: Any) -> None:
        """Append an event and sync it to disk; an incomplete last line is removed first.

        Raises:
            CheckpointError: If the disk cannot be written, or the file is damaged or a symbolic link.
        """
        read = self._read()
        when = datetime.now(UTC).isoformat(timespec="seconds")
        body = {"time": when, "event": event, **facts}
        chain = ""
        for earlier, _ in read:
            chain = digest(chain, earlier)
        line = json.dumps({**body, "chain": digest(chain, body)}, ensure_ascii=False) + "\n"
        with disk_errors(self.path):
            make_folder(self.path.parent)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            descriptor = os.open(self.path, flags, file_mode(self.path.parent))
            with open(descriptor, "a+b") as file:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())

    def _read(self) -> list[tuple[dict[str, Any], bool]]:
        """Return the events without their chains, each with whether it had one."""
        content = self._content()
        if content != self._kept[0]:
            self._kept = content, list(self._lines(content))
        return [(dict(event), chained) for event, chained in self._kept[1]]

    def _content(self) -> bytes:
        """Return the bytes of the file; none if it does not exist."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror}).") from None

    def _lines(self, content: bytes) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield what `_read` returns; raise CheckpointError at the first damaged line."""
        chain, chained = "", False
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            place = f"{self.path}, line {number}: damaged"
            try:
                event = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"{place} ({error}). Restore the file from a copy.") from None
            if not isinstance(event, dict):
                raise CheckpointError(f"{place} (not an event). Restore the file from a copy.")
            found = event.pop("chain", None)
            chain = digest(chain, event)
            if found != chain and (found is not None or chained):
                raise CheckpointError(f"{place} (this line or one before was changed). Restore the file from a copy.")
            if not _is_event(event):
                raise CheckpointError(f"{place} (not an event). Restore the file from a copy.")
            chained = chained or found is not None
            yield event, found is not None


def _is_event(event: dict[str, Any]) -> bool:
    kind, name, sha256 = (event.get(key) for key in ("event", "version", "sha256"))
    if kind not in ("version", "prepared") and not (kind == "removed" and "version" in event):
        return isinstance(kind, str)
    named = isinstance(name, str) and VERSION_NAME.fullmatch(name)
    known = isinstance(sha256, str) and SHA256.fullmatch(sha256)
    return bool(named and (known or (kind != "prepared" and sha256 is None)))
