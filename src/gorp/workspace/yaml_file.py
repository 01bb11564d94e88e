"""A YAML file, read as JSON would be: mappings with text as keys, lists, text, numbers, true, false and null.

Differences from PyYAML's safe loader: `2e-4` is a number, a day stays text, a key that occurs twice is an error, and so
are tags such as `!!binary`. What a file may hold is bounded before any of it is built, aliases counted as often as they
are used: a few lines can otherwise stand for a billion values.
"""

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from gorp.errors import ConfigError, shown


MAX_BYTES = 2_000_000
"""Of a file."""

MAX_VALUES = 100_000
"""Keys and values in a file, those behind an alias counted each time it is used."""

MAX_DEPTH = 50
"""Mappings and lists inside one another."""

MAX_DIGITS = 40
"""Of a whole number."""

TAG = "tag:yaml.org,2002:"
KNOWN = {f"{TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: If the file is missing, no regular file, too large, is not YAML, holds no mapping, or something
            that is refused (see the top of this file).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: cannot be read: it is no regular file. Give the path of a YAML file.")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ConfigError(f"{path}: has {size:,} bytes; a configuration has at most {MAX_BYTES:,}.")
        text = path.read_text(encoding="utf-8")
        value = yaml.load(text, Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Give the path of a YAML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {shown(' '.join(str(error).split()), 500)}") from None
    except ValueError as error:  # a path that holds a NUL
        raise ConfigError(f"{shown(str(path))}: cannot be read ({error}). Give the path of a YAML file.") from None
    if not isinstance(value, dict):
        kind = {type(None): "empty", list: "a list", str: "text"}.get(type(value), "a single value")
        raise ConfigError(f"{path}: holds {kind}; wanted a mapping with `model:`, `method:` and `tasks:`.")
    return value


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _error("nested too deep", self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > MAX_VALUES:
            raise _error(f"more than {MAX_VALUES:,} values, aliases counted as often as they are used", node.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, AttributeError):  # `!!int x`, `!!bool x`
            raise _error(f"this is no {node.tag.removeprefix(TAG)}", node.start_mark) from None


# A day stays as it is written: text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{TAG}timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver(f"{TAG}float", _FLOAT, list("-+0123456789"))


def _size(node: yaml.Node, known: dict[yaml.Node, int | None]) -> int:
    """How many keys and values a node stands for; refuses what no configuration holds on the way.

    Args:
        node: Where to begin.
        known: The sizes of nodes seen before; None while a node is being counted.
    """
    if node in known:
        if (size := known[node]) is None:
            raise _error("an alias that leads to itself", node.start_mark)
        return size
    if node.tag not in KNOWN:
        raise _error(f"the tag {shown(node.tag.replace(TAG, '!!'))} is not known here", node.start_mark)
    known[node] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node)
    elif isinstance(node, yaml.MappingNode):
        _check_names(node)
        parts = [part for pair in node.value for part in pair]
    else:
        parts = node.value
    known[node] = 1 + sum(_size(part, known) for part in parts)
    return known[node] or 0


def _check_scalar(node: yaml.ScalarNode) -> None:
    if node.tag == f"{TAG}int" and len(node.value) > MAX_DIGITS:
        raise _error(f"a whole number of {len(node.value)} digits", node.start_mark)
    if any("\ud800" <= letter <= "\udfff" for letter in node.value):
        raise _error("half of a surrogate pair (\\ud800 to \\udfff) is no text", node.start_mark)


def _check_names(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if key.tag == f"{TAG}merge":
            continue
        if key.tag != f"{TAG}str":
            raise _error(f"the key {shown(str(key.value))} is no text; write quotes around it", key.start_mark)
        if key.value in seen:
            raise _error(f"the key `{shown(key.value)}` occurs twice", key.start_mark)
        seen.add(key.value)


def _error(what: str, mark: yaml.Mark) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, what, mark)
