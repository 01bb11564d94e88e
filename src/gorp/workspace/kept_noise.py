"""Counts of noise that the evidence of a pair of versions holds already, so that making it again does not lose them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gorp.errors import GorpError
from gorp.storage import read_json
from gorp.workspace.scores import Scores
from gorp.workspace.seal import is_sealed
from gorp.workspace.version import Version


COUNTS = ("rows", "differing", "flipped")
"""What is counted of each task; see `gorp.workspace.noise.count_noise`."""


def kept_noise(
    path: Path, scores: Scores, new: Version, old: Version
) -> tuple[dict[str, dict[str, int]] | None, str | None]:
    """Return the counts in the evidence at `path`, and a sentence on them; None and None if it holds none.

    The counts are of the new version's recorded answers, so they hold as long as both versions and these answers are
    the same. Otherwise they are not returned, and the sentence says so.

    Args:
        path: The evidence; it need not exist.
        scores: Those of the workspace.
        new: The new version.
        old: The old version.
    """
    kept = _read(path)
    if kept is None or not isinstance(kept.get("noise"), dict) or not kept["noise"]:
        return None, None
    if not _same(kept, scores, new, old):
        return None, (
            "the noise that was counted before is not used, because answers were given again since; `gorp gate "
            "--noise` counts again"
        )
    counts = {task: {key: kept["noise"][task][key] for key in COUNTS} for task in old.contains}
    return counts, "noise: as `gorp gate --noise` counted it before; the answers are still the same"


def _read(path: Path) -> Mapping[str, Any] | None:
    """Return the evidence; None if there is none, or a damaged one, which is written anew."""
    try:
        kept = read_json(path) if path.is_file() else None
    except GorpError:
        return None
    return kept if is_sealed(kept) else None


def _same(kept: Mapping[str, Any], scores: Scores, new: Version, old: Version) -> bool:
    """Whether the counts in `kept` are of these versions, and of the answers that the new one has now."""
    cells, answers, noise = scores.cells.get(new.name, {}), kept.get("answers", {}), kept["noise"]
    return all(kept[side].get("sha256") == version.sha256 for side, version in (("new", new), ("old", old))) and all(
        task in noise and answers.get(f"{new.name}-{task}") == cells.get(task, {}).get("samples", "none")
        for task in old.contains
    )
