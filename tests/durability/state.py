"""Everything that a project holds on disk, in a form in which two runs of the same commands are equal.

Left out is what two runs may differ in although nothing interrupted either:

- times and durations (`VOLATILE`), and with them the digests of what holds them: of version.json (in the ledger, the
  evidence of the gate and CURRENT), of training.json (in it and in version.json), of the evidence, and the ledger's
  chain; and the size of a removed version.

And what a repeated command may add to the ledger, and nothing else:

- `resumed_at` in training.json says from which step a training went on;
- an event directly after an equal one: `prepared`, `promote` or `rollback` was entered, and its effect followed only
  when the command was repeated;
- `removed` without a version: `gorp gc` removed what a killed process had left.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from gorp.storage import read_tensors
from gorp.workspace.seal import SEAL


VOLATILE = {"time", "created", "seconds", "boundary_seconds", "resumed_at", SEAL, "chain", "training.json"}
"""Keys of JSON objects that are left out."""

OF_VERSIONS = {"sha256", "bytes"}
"""Keys that are left out as well in the ledger and in the evidence, where they are those of whole versions."""

Contents = dict[str, Any]


def state(folder: Path) -> Contents:
    """Return the content of every file below `folder`, by relative path; folders have the content "folder"."""
    found: Contents = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = "folder" if path.is_dir() else _content(path)
    return found


def differences(found: Contents, wanted: Contents) -> list[str]:
    """Return a line for each path whose content is not the wanted one."""
    lines = [f"{name}: left over" for name in found if name not in wanted]
    lines += [f"{name}: missing" for name in wanted if name not in found]
    for name in found:
        if name in wanted and found[name] != wanted[name]:
            lines.append(f"{name}: {_difference(found[name], wanted[name])}")
    return lines


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors" and path.parent.parent.name == "versions":
        tensors, header = read_tensors(path)
        return {"header": header, **{name: save({"": tensor}) for name, tensor in tensors.items()}}
    if path.name == "CURRENT":
        return path.read_text().split()[0]
    if path.name == "ledger.jsonl":
        return _events(path)
    if path.name in ("version.json", "training.json"):
        return _steady(json.loads(path.read_text()), VOLATILE)
    if path.parent.name == "gate":
        return _steady(json.loads(path.read_text()), VOLATILE | OF_VERSIONS)
    return path.read_bytes()


def _events(path: Path) -> list[Any]:
    events: list[Any] = []
    for line in path.read_text().splitlines():
        event = _steady(json.loads(line), VOLATILE | OF_VERSIONS)
        added = event["event"] == "removed" and "version" not in event
        if not added and event != (events or [None])[-1]:
            events.append(event)
    return events


def _steady(value: Any, without: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _steady(item, without) for key, item in value.items() if key not in without}
    return [_steady(item, without) for item in value] if isinstance(value, list) else value


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        return "; ".join(f"{key}: {str(found.get(key))[:200]}, wanted {str(wanted.get(key))[:200]}" for key in keys[:4])
    return f"{str(found)[:1500]}, wanted {str(wanted)[:1500]}"
