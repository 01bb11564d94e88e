"""What was measured on the guard text: a file for each version, and the comparison of two versions from these files.

`eval/guard/<version>.json` has `key` and `conditions` as a score has them, the SHA-256 of the guard's file, and for
each text its index, its predicted tokens and its loss in nats per token. It is sealed, so damage is found.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gorp.errors import CheckpointError
from gorp.storage import file_sha256, read_json, write_json
from gorp.workspace.ledger import SHA256
from gorp.workspace.scores import Scores
from gorp.workspace.seal import SEAL, is_sealed, sealed


LEVEL = 0.05
"""About the probability that a version whose loss rose by just the margin is held, for differences without heavy tails.

The test is one-sided. Over 4000 draws of 20, 50 and 200 equally long texts it held 5.9, 5.5 and 5.2 % with normal
differences, and 18.1, 13.4 and 8.8 % with strongly left-skewed ones (minus a log-normal with sigma = 1).
"""

LEAST = 20
"""Fewest texts that may decide: a bootstrap of fewer gives too narrow intervals."""


def guard_path(folder: Path, version: str) -> Path:
    """Return the file of a version in the `eval` folder of a workspace."""
    return folder / "guard" / f"{version}.json"


def write_guard(folder: Path, version: str, values: Mapping[str, Any]) -> None:
    """Write what was measured of a version.

    Args:
        folder: The `eval` folder.
        version: Name of the version.
        values: `key`, `conditions`, `sha256`, and `texts`, a list of `index`, `tokens` and `nll` (None: not finite).
    """
    with Scores(folder).writing():
        write_json(guard_path(folder, version), sealed(values, "guard", version))


def read_guard_values(folder: Path, version: str) -> dict[str, Any]:
    """Return what was measured of a version.

    Raises:
        CheckpointError: If there is nothing, or the file is damaged.
    """
    path, again = guard_path(folder, version), f"`gorp eval --version {version}`"
    if not path.is_file():
        raise CheckpointError(
            f"{path}: not there: {version} was not scored on the guard text. {again} scores it on the one of the YAML."
        )
    found = read_json(path)
    if not is_sealed(found, "guard", version) or not _valid(found):
        raise CheckpointError(f"{path}: damaged or changed: not as gorp wrote it. {again} writes it again.")
    return found


def _valid(found: Mapping[str, Any]) -> bool:
    texts = found.get("texts")
    return (
        all(isinstance(found.get(key), str) and SHA256.fullmatch(found[key]) for key in ("key", "conditions", "sha256"))
        and isinstance(texts, list)
        and bool(texts)
        and all(isinstance(each, dict) and set(each) == {"index", "tokens", "nll"} for each in texts)
    )


def compare_guard(folder: Path, old: str, new: str, margin: float | None) -> dict[str, Any]:
    """Compare two versions on the guard text.

        loss(version) = Σᵢ nᵢ nllᵢ / Σᵢ nᵢ        over the texts i with nᵢ predicted tokens: nats per token

    The version is held if the rise is shown to be larger than the margin: the lower end of its one-sided 95 % bootstrap
    interval, for which texts are drawn, is above it. A version of which a text has no finite loss any more is held too.

    Args:
        folder: The `eval` folder.
        old: Name of the older version.
        new: Name of the newer version.
        margin: In nats per token; None: the text only informs.

    Returns:
        `sha256` of the guard's file, `rows`, `tokens`, `old` and `new` loss, `difference`, its two-sided 95 %
        `interval`, the end `lower` of the one-sided one, `margin`, `verdict` (None without a margin), and `values`, the
        digest of what was measured of each version. Numbers that are not finite are None.

    Raises:
        CheckpointError: If a version was not scored on the text, the two were scored on other texts or with other
            settings, there are fewer than `LEAST` texts and a margin, or a file is damaged.
    """
    from gorp.evaluation.calibration import paired_difference  # imports scipy, which `gorp doctor` must not need

    before, after = (read_guard_values(folder, version) for version in (old, new))
    if before["conditions"] != after["conditions"]:
        raise CheckpointError(
            f"guard text: {old} and {new} were scored on other text, or with other settings. `gorp eval --version "
            f"{old}` and `gorp eval --version {new}` score them as now."
        )
    tokens = [each["tokens"] for each in before["texts"]]
    if margin is not None and len(tokens) < LEAST:
        raise CheckpointError(
            f"gate.guard_margin: {old} and {new} were scored on {len(tokens)} texts; wanted at least {LEAST}, because "
            "fewer show nothing with certainty. Remove the margin, or add texts and run `gorp train`, which scores "
            "the versions again."
        )
    losses = [[each["nll"] for each in side["texts"]] for side in (before, after)]
    found: dict[str, Any] = {
        "sha256": before["sha256"],
        "rows": len(tokens),
        "tokens": sum(tokens),
        **{name: _mean(side, tokens) for name, side in zip(("old", "new"), losses, strict=True)},
        **dict.fromkeys(("difference", "interval", "lower")),
        "margin": margin,
        "verdict": None,
        "values": {old: before[SEAL], new: after[SEAL]},
    }
    broken = found["new"] is None and found["old"] is not None
    if found["new"] is not None and found["old"] is not None:
        ends = (0.025, 0.975, LEVEL)
        found["difference"], (*found["interval"], found["lower"]) = paired_difference(
            *losses, weights=tokens, quantiles=ends
        )
    if margin is not None:
        held = broken or (found["lower"] is not None and found["lower"] > margin)
        found["verdict"] = "hold" if held else "ship"
    return found


def guard_facts(
    folder: Path, old: str, new: str, *, wanted: bool, margin: float | None
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the comparison of two versions on the guard text and None, or None and why there is none.

    Args:
        folder: The `eval` folder.
        old: Name of the older version.
        new: Name of the newer version.
        wanted: Whether there is a guard text; without one both results are None.
        margin: In nats per token; None: the text only informs.

    Raises:
        CheckpointError: If the text decides, and they cannot be compared on it.
    """
    if not wanted:
        return None, None
    try:
        return compare_guard(folder, old, new, margin), None
    except CheckpointError as error:
        if margin is not None:
            raise
        return None, str(error)


def other_text(path: str, sha256: str) -> str | None:
    """Return a sentence if a file is no longer the guard text that was scored, else None.

    Args:
        path: The file that the YAML names.
        sha256: Of the text that was scored.
    """
    try:
        now = file_sha256(Path(path)) if os.path.isfile(path) else None
    except OSError:
        now = None
    if now == sha256:
        return None
    became = "cannot be read" if now is None else "has changed since; `gorp train` scores the versions on it as it is"
    return f"guard text: the numbers are of the text with the SHA-256 {sha256[:12]}…; {path} {became}"


def guard_levels(folder: Path, versions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return `nll` and `rows` of those versions that were scored on the same text as the last one.

    Args:
        folder: The `eval` folder.
        versions: Names of versions. Damaged files are left out.
    """
    found = dict[str, dict[str, Any]]()
    for version in versions:
        with suppress(CheckpointError):
            found[version] = read_guard_values(folder, version)
    last = found.get(versions[-1], {"conditions": None})
    return {
        version: {
            "nll": _mean([each["nll"] for each in values["texts"]], [each["tokens"] for each in values["texts"]]),
            "rows": len(values["texts"]),
        }
        for version, values in found.items()
        if values["conditions"] == last["conditions"]
    }


def _mean(losses: list[float | None], tokens: list[int]) -> float | None:
    known = [loss for loss in losses if loss is not None]
    return float(np.average(known, weights=tokens)) if len(known) == len(tokens) else None
