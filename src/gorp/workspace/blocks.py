"""Convert a mapping of a YAML file to a frozen dataclass; errors name the place of unknown keys and wrong types."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from reprlib import Repr
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from gorp.errors import ConfigError, nearest, shown


T = TypeVar("T")


def read_block(cls: type[T], block: Any, where: str) -> T:
    """Return an instance of the dataclass `cls` from a mapping with its fields.

    Args:
        cls: A dataclass with keyword arguments.
        block: The value in the YAML.
        where: The path of the block in the YAML, for messages; empty for the whole file.

    Raises:
        ConfigError: For an unknown key (with the nearest known key), a missing key, or a value of a wrong type.
    """
    prefix = f"{where}." if where else ""
    check_keys(block, [field.name for field in fields(cls)], where)  # pyright: ignore[reportArgumentType]
    for field in fields(cls):  # pyright: ignore[reportArgumentType]
        if field.name not in block and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{prefix}{field.name} is missing and has no default. Add it.")
    return read_value(cls, block, where)


def read_value(kind: Any, value: Any, where: str) -> Any:
    """Convert `value` to the type `kind`; text that reads as a number is accepted where a number is wanted.

    Raises:
        ConfigError: If that fails; the message names the path in the YAML.
    """
    _refuse_booleans(kind, value, where)
    try:
        return TypeAdapter(kind).validate_python(value)
    except ConfigError as error:  # raised by the dataclass itself, which does not know its place in the YAML
        text = str(error)
        raise ConfigError(text if text.startswith(where) else f"{where}: {text}") from None
    except ValidationError as error:
        first = error.errors()[0]
        steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"] if _is_place(step)]
        path = (where + "".join(steps)).removeprefix(".")
        quotes = " Write quotes around it." if first["type"] == "string_type" and _is_scalar(first["input"]) else ""
        raise ConfigError(f"{path} is {show(first['input'])}: {_lower(first['msg'])}.{quotes}") from None


def check_keys(block: Any, known: list[str], where: str) -> None:
    """Raise `ConfigError` if `block` is not a mapping or has a key that is not in `known`.

    The message names the path in the YAML and the nearest known key.
    """
    name = where or "the file"
    if not isinstance(block, Mapping):
        raise ConfigError(f"{name} is {kind_of(block)}; wanted a mapping with some of {', '.join(known) or 'no keys'}.")
    for key in block:
        if key not in known:
            path = f"{where}.{key}" if where else str(key)
            keys = f"known keys: {', '.join(known)}" if known else "it takes no options"
            raise ConfigError(f"{shown(path)}: unknown key; {keys}.{nearest(str(key), known)}")


def _is_place(step: Any) -> bool:
    """Whether `step` is a key or an index; Pydantic also lists the type in a union that it tried."""
    return isinstance(step, int) or (step.isidentifier() and step not in {"str", "int", "float", "bool"})


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def kind_of(value: Any) -> str:
    """Return the kind of a YAML value in words."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "empty" if value is None else names.get(type(value), type(value).__name__)


def show(value: Any) -> str:
    """Return a short repr of `value` for an error message."""
    return shown(_BRIEF.repr(value), 200)


_BRIEF = Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 2, 100, 100


def _refuse_booleans(kind: Any, value: Any, where: str) -> None:
    """Raise `ConfigError` for true or false where a number is wanted: Python and Pydantic accept them as 1 and 0."""
    if is_dataclass(kind) and isinstance(value, Mapping):
        for name, hint in get_type_hints(kind).items():
            _refuse_booleans(hint, value.get(name), f"{where}.{name}" if where else name)
    elif get_origin(kind) is dict and isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_booleans(get_args(kind)[1], item, f"{where}.{key}")
    elif isinstance(value, bool):
        kinds = {kind, *get_args(kind)}
        if kinds & {int, float} and bool not in kinds:
            raise ConfigError(f"{where} is {str(value).lower()}; wanted a number.")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
