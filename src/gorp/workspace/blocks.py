"""From a mapping of a YAML file to a frozen dataclass: unknown keys, wrong types, and where in the file they stand."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from gorp.errors import ConfigError, nearest


T = TypeVar("T")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Two things differ from PyYAML: `2e-4` is a number, and a key that occurs twice is an error.

    Raises:
        ConfigError: If the file is missing, is not YAML, or holds no mapping.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Give the path of a YAML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds {_kind(value)}; wanted a mapping with `model:`, `method:` and `tasks:`.")
    return value


def read_block(cls: type[T], block: Any, where: str) -> T:
    """An instance of the dataclass `cls` from a mapping with its fields.

    Args:
        cls: A dataclass with keyword arguments.
        block: What the YAML holds there.
        where: The path of the block in the YAML, for messages; empty for the whole file.

    Raises:
        ConfigError: For an unknown key, with the nearest right one; a missing key; a value of a wrong type.
    """
    prefix = f"{where}." if where else ""
    check_keys(block, [field.name for field in fields(cls)], where)  # pyright: ignore[reportArgumentType]
    for field in fields(cls):  # pyright: ignore[reportArgumentType]
        if field.name not in block and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{prefix}{field.name} is missing; it has no default. Add it.")
    return read_value(cls, block, where)


def read_value(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`; text that reads as a number becomes one where a number is wanted.

    Raises:
        ConfigError: With the path in the YAML.
    """
    from pydantic import TypeAdapter, ValidationError  # slow to import, and `read_yaml` does not need it

    try:
        return TypeAdapter(kind).validate_python(value)
    except ConfigError as error:  # of the dataclass itself, which does not know where it stands
        text = str(error)
        raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from None
    except ValidationError as error:
        first = error.errors()[0]
        steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"] if _is_place(step)]
        path = (where + "".join(steps)).removeprefix(".")
        quotes = " Write quotes around it." if first["type"] == "string_type" and _is_scalar(first["input"]) else ""
        raise ConfigError(f"{path} is {first['input']!r}: {_lower(first['msg'])}.{quotes}") from None


def check_keys(block: Any, known: list[str], where: str) -> None:
    """Refuse what is no mapping, and keys that are not in `known`.

    Raises:
        ConfigError: With the nearest right key and the path in the YAML.
    """
    name = where or "the file"
    if not isinstance(block, Mapping):
        raise ConfigError(f"{name} is {_kind(block)}; wanted a mapping with some of {', '.join(known) or 'no keys'}.")
    for key in block:
        if key not in known:
            path = f"{where}.{key}" if where else str(key)
            keys = f"known keys: {', '.join(known)}" if known else "it takes none"
            raise ConfigError(f"{path}: unknown key; {keys}.{nearest(str(key), known)}")


class _Loader(yaml.SafeLoader):
    """SafeLoader of YAML 1.2 floats, without doubled keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key}` occurs twice", key_node.start_mark
                )
            seen.add(str(key))
        return super().construct_mapping(node, deep)


# A day stays as it is written: text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def _is_place(step: Any) -> bool:
    """Pydantic also names the branch of a union it tried; that is no place in the file."""
    return isinstance(step, int) or (step.isidentifier() and step not in {"str", "int", "float", "bool"})


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "empty" if value is None else names.get(type(value), type(value).__name__)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
