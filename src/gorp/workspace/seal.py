"""Store a digest inside a JSON object, so that damage or an edit is detected when the object is read."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


SEAL = "digest"
"""The key of the digest in a sealed object."""


def digest(*values: Any) -> str:
    """Return the SHA-256 of JSON values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sealed(value: Mapping[str, Any], *where: str) -> dict[str, Any]:
    """Return `value` with a digest of it and of its place `where`, so that moving it elsewhere is detected too."""
    return {**value, SEAL: digest(*where, value)}


def is_whole(value: Mapping[str, Any], *where: str) -> bool:
    """Whether `value` is unchanged since it was sealed at `where`. True without a digest: gorp 0.1.0 wrote none."""
    rest = {key: item for key, item in value.items() if key != SEAL}
    return SEAL not in value or value[SEAL] == digest(*where, rest)


def is_sealed(value: Any, *where: str) -> bool:
    """Whether `value` is an object with a digest, and unchanged since it was sealed at `where`."""
    return isinstance(value, dict) and SEAL in value and is_whole(value, *where)
