"""A digest inside a JSON object, so that a value that was damaged or edited is noticed where it is read."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


SEAL = "digest"
"""The key that a sealed object has besides its own."""


def digest(*values: Any) -> str:
    """SHA-256 of JSON values, in whatever order their keys are."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sealed(value: Mapping[str, Any], *where: str) -> dict[str, Any]:
    """`value` with a digest of it and of `where` it stands, so that it cannot be moved elsewhere either."""
    return {**value, SEAL: digest(*where, value)}


def is_whole(value: Mapping[str, Any], *where: str) -> bool:
    """Whether `value` is as it was sealed. One without a seal is whole: version 0.1.0 wrote none."""
    rest = {key: item for key, item in value.items() if key != SEAL}
    return SEAL not in value or value[SEAL] == digest(*where, rest)
