"""The recorded answers of two versions to the same rows, and those that changed between right and wrong."""

from collections.abc import Sequence
from typing import Any

from gorp.errors import CheckpointError
from gorp.workspace.scores import Scores


Answers = tuple[dict[str, Any], dict[str, Any]]
"""The older version's answer to a row, and the newer one's, each as a line of `eval/samples`."""


def paired(scores: Scores, task: str, old: str, new: str) -> list[Answers]:
    """Return the answers of both versions to each row of a task.

    Args:
        scores: Those of the workspace.
        task: Name of the task.
        old: Name of the older version.
        new: Name of the newer version.

    Raises:
        CheckpointError: If answers are missing or damaged, or the two versions were scored on other rows.
    """
    first, second = (scores.answers(version, task) for version in (old, new))
    before, after = (scores.cells[version][task] for version in (old, new))
    if before.get("conditions") != after.get("conditions"):
        raise CheckpointError(
            f"{task}: {old} and {new} were scored on other rows, or with other settings. `gorp eval --version {old}` "
            "scores the older one as now."
        )
    pairs = list(zip(first, second, strict=True))
    assert all(a["index"] == b["index"] for a, b in pairs), "equal conditions mean equal rows"
    return pairs


def flipped(rows: Sequence[Answers]) -> list[dict[str, Any]]:
    """Return the rows whose answer changed between right and wrong, those that turned wrong first.

    Returns:
        `index`, `prompt`, `expected`, the `old` and the `new` answer, and `lost`, whether it turned wrong.
    """
    changed = [
        {"index": a["index"], "prompt": a["prompt"], "expected": a["expected"], "old": a["answer"], "new": b["answer"]}
        | {"lost": a["correct"]}
        for a, b in rows
        if a["correct"] != b["correct"]
    ]
    return sorted(changed, key=lambda row: not row["lost"])
