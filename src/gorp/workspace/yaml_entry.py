"""Insert an entry into the list `tasks:` of a YAML file; every other character of the file stays as it is.

PyYAML's marks say where the list ends. Whether the text that results is right is not left to that: it is parsed, and
must be the old values with the entry at the end of `tasks`.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from gorp.errors import ConfigError
from gorp.workspace.yaml_file import parse_yaml


PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_./-]*[A-Za-z0-9_/-]")
"""Text that needs no quotes, unless it is one of `WORDS`."""

WORDS = frozenset("true false yes no on off null y n".split())


def insert_task(text: str, entry: Mapping[str, str], where: str) -> str:
    """Return `text` with `entry` at the end of its list `tasks`.

    Args:
        text: A YAML file, with its line ends and byte order mark.
        entry: Keys and values of the task, all text.
        where: The file, for messages.

    Raises:
        ConfigError: If `tasks` is not a list that can be appended to; the message says why.
    """
    old = parse_yaml(text, where)
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    found = [(key, value) for key, value in root.value if key.value == "tasks"]
    if not found:
        raise ConfigError(f"{where}: has no key `tasks:` of its own. Write a line `tasks:` at its end.")
    key, value = found[0]
    empty = isinstance(value, yaml.ScalarNode) and value.value in ("", "~", "null") and old["tasks"] is None
    if not empty and not isinstance(value, yaml.SequenceNode):
        kind = "a published order" if isinstance(old["tasks"], dict) else "not a list"
        raise ConfigError(
            f"{where}: `tasks:` is {kind}, to which no task can be added. Write `tasks:` as a list, each with `name:` "
            "and `train:`."
        )
    if value.start_mark.index < key.start_mark.index:
        raise ConfigError(
            f"{where}: `tasks:` is an alias of another list. Write the list there, or add the task by hand."
        )
    if empty and value.value:
        raise ConfigError(f"{where}: `tasks:` is `{value.value}`. Remove that word, so that the list can follow.")
    written = _in_flow(text, value, entry) if _is_flow(value) else _in_block(text, key, value, entry)
    try:
        new = parse_yaml(written, where)
    except ConfigError:
        new = None
    if new != {**old, "tasks": [*(old["tasks"] or []), dict(entry)]}:
        raise ConfigError(
            f"{where}: the task cannot be added without changing something else in the file. Add it by hand: "
            f"- {flow_entry(entry)}"
        )
    return written


def flow_entry(entry: Mapping[str, str]) -> str:
    """Return an entry as `{name: november, train: november.jsonl}`."""
    return "{" + ", ".join(f"{key}: {quoted(value)}" for key, value in entry.items()) + "}"


def quoted(text: str) -> str:
    """Return a text as a YAML value, in quotes if it needs them."""
    if PLAIN.fullmatch(text) and text.lower() not in WORDS:
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=2**31).strip()


def _is_flow(value: Any) -> bool:
    return isinstance(value, yaml.SequenceNode) and bool(value.flow_style)


def _in_flow(text: str, value: Any, entry: Mapping[str, str]) -> str:
    """Insert behind the last entry, so that a comma and a comment after it stay, or into the empty brackets."""
    if value.value:
        at = value.value[-1].end_mark.index
        return f"{text[:at]}, {flow_entry(entry)}{text[at:]}"
    at = value.end_mark.index - 1  # before "]"
    return f"{text[:at]}{flow_entry(entry)}{text[at:]}"


def _in_block(text: str, key: Any, value: Any, entry: Mapping[str, str]) -> str:
    """Insert a line behind the last line of the list that is not blank or a comment."""
    end = "\r\n" if "\r\n" in text else "\n"
    items = value.value if isinstance(value, yaml.SequenceNode) else []
    if items:
        lines = text[: value.end_mark.index].splitlines(keepends=True)
        begin = re.compile(r"(?<![^\s])-\s").search(text, value.start_mark.index)  # after an anchor, if there is one
        assert begin is not None
        indent = " " * (begin.start() - text.rfind("\n", 0, begin.start()) - 1)
        if value.end_mark.column and text[value.end_mark.index :]:
            lines.pop()  # the beginning of the line of the next key
    else:
        lines = text[: key.end_mark.index].splitlines(keepends=True)
        rest = text[key.end_mark.index :].splitlines(keepends=True)
        lines[-1] += rest[0] if rest else ""
        indent = " " * (key.start_mark.column + 2)
    while items and lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    before = "".join(lines)
    after = text[len(before) :]
    if before and not before.endswith(("\n", "\r")):
        before += end
    block = bool(items) and isinstance(items[-1], yaml.MappingNode) and not items[-1].flow_style
    if block:
        written = [f"{name}: {quoted(content)}" for name, content in entry.items()]
        new = f"{indent}- " + f"{end}{indent}  ".join(written)
    else:
        new = f"{indent}- {flow_entry(entry)}"
    return f"{before}{new}{end}{after}"
