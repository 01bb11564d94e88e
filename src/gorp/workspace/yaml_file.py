"""Read a YAML file that holds only JSON values: mappings with text keys, lists, text, numbers, true, false and null.

Differences from PyYAML's safe loader: `2e-4` is a number, a date stays text, and a key that occurs twice or a tag such
as `!!binary` is an error. Size limits are checked before any value is built. An alias counts as often as it is used,
because a few lines with aliases can stand for a billion values.
"""

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from gorp.errors import ConfigError, shown


MAX_BYTES = 2_000_000
"""Maximum size of a file."""

MAX_VALUES = 100_000
"""Maximum number of keys and values in a file; those behind an alias count each time it is used."""

MAX_DEPTH = 50
"""Maximum nesting of mappings and lists."""

MAX_DIGITS = 40
"""Maximum number of digits of an integer."""

TAG = "tag:yaml.org,2002:"
KNOWN = {f"{TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: If the file is missing, not a regular file, too large, not YAML, holds no mapping, or holds a value
            that is refused (see the top of this file).
    """
    return parse_yaml(read_text(path), path)


def read_text(path: Path) -> str:
    """Return the content of a YAML file, with its line ends and byte order mark.

    Raises:
        ConfigError: If the file is missing, not a regular file, too large, or not UTF-8.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: cannot be read: it is not a regular file. Give the path of a YAML file.")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ConfigError(f"{path}: has {size:,} bytes; a configuration has at most {MAX_BYTES:,}.")
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Give the path of a YAML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None
    except ValueError as error:  # the path contains a NUL character
        raise ConfigError(f"{shown(str(path))}: cannot be read ({error}). Give the path of a YAML file.") from None
    return text


def parse_yaml(text: str, path: Path | str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds.

    Args:
        text: The content of a file.
        path: The file, for messages.

    Raises:
        ConfigError: If it is not YAML, holds no mapping, or holds a value that is refused (see the top of this file).
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {shown(' '.join(str(error).split()), 500)}") from None
    if not isinstance(value, dict):
        kind = {type(None): "nothing", list: "a list", str: "text"}.get(type(value), "a single value")
        raise ConfigError(f"{path}: holds {kind}; wanted a mapping with `model:`, `method:` and `tasks:`.")
    return value


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _error(f"nested deeper than {MAX_DEPTH} levels", self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > MAX_VALUES:
            raise _error(f"more than {MAX_VALUES:,} values (an alias counts each time it is used)", node.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, AttributeError):  # `!!int x`, `!!bool x`
            raise _error(f"not a valid value of type {node.tag.removeprefix(TAG)}", node.start_mark) from None


# Without the timestamp resolver a date stays text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{TAG}timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver(f"{TAG}float", _FLOAT, list("-+0123456789"))


def _size(node: yaml.Node, known: dict[yaml.Node, int | None]) -> int:
    """Return the number of keys and values below a node; raise for a value that no configuration may hold.

    Args:
        node: The node to count.
        known: Sizes of the nodes counted so far; None for a node that is being counted.
    """
    if node in known:
        if (size := known[node]) is None:
            raise _error("an alias that contains itself", node.start_mark)
        return size
    if node.tag not in KNOWN:
        raise _error(f"the tag {shown(node.tag.replace(TAG, '!!'))} is not supported", node.start_mark)
    known[node] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node)
    elif isinstance(node, yaml.MappingNode):
        _check_keys(node)
        parts = [part for pair in node.value for part in pair]
    else:
        parts = node.value
    known[node] = 1 + sum(_size(part, known) for part in parts)
    return known[node] or 0


def _check_scalar(node: yaml.ScalarNode) -> None:
    if node.tag == f"{TAG}int" and len(node.value) > MAX_DIGITS:
        raise _error(f"an integer of {len(node.value)} digits; at most {MAX_DIGITS} are allowed", node.start_mark)
    if any("\ud800" <= letter <= "\udfff" for letter in node.value):
        raise _error("half of a surrogate pair (\\ud800 to \\udfff) is not valid text", node.start_mark)


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if key.tag == f"{TAG}merge":
            continue
        if key.tag != f"{TAG}str":
            raise _error(f"the key {shown(str(key.value))} is not text; write quotes around it", key.start_mark)
        if key.value in seen:
            raise _error(f"the key `{shown(key.value)}` occurs twice", key.start_mark)
        seen.add(key.value)


def _error(what: str, mark: yaml.Mark) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, what, mark)
