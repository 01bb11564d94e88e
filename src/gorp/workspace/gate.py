"""The gate: compare a version with an earlier one on every task that the earlier one had learned, from files alone.

Both versions have answered the same rows; the answers are in `eval/samples`. For each task the verdict is `ship`,
`hold` or `inconclusive` (`gorp.evaluation.paired`). The evidence is kept in `eval/gate/<new>-<old>.json`: with it, the
verdict can be computed again from the answers. It also has what does not decide: how certain both versions are, and the
leak of the change against what each earlier task protected. The guard text (`gorp.workspace.guard`) decides only if it
has a margin. `gorp train` judges each new version so before it is published, `gorp promote` before it moves CURRENT.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gorp
from gorp.errors import ConfigError
from gorp.evaluation.paired import (
    Flips,
    Verdict,
    any_loss,
    inferior,
    interval,
    not_inferior,
    rows_needed,
    together,
    verdicts,
)
from gorp.storage import write_json
from gorp.workspace.certainty import certainty
from gorp.workspace.flips import flipped, paired
from gorp.workspace.gate_config import ALLOWED, GateConfig, present_gate
from gorp.workspace.guard_values import guard_facts, other_text
from gorp.workspace.kept_noise import COUNTS, kept_noise
from gorp.workspace.scores import Scores
from gorp.workspace.seal import sealed
from gorp.workspace.store import Version, Workspace


if TYPE_CHECKING:
    from gorp.progress import Progress


LEVEL = 0.05
"""α: probability that a task passes wrongly, and that a version is held wrongly."""

LARGEST_ERROR = 99.0
"""Largest margin in points that noise gives a task; at 100 points nothing could be lost."""


def gate(
    workspace: Path,
    *,
    version: str | None = None,
    against: str | None = None,
    margin: float | Mapping[str, float] | None = None,
    settings: GateConfig | None = None,
    judged: Mapping[str, Any] | None = None,
    source: Path | None = None,
    noise: bool = False,
    base: Path | None = None,
    trust_remote_code: bool = False,
    dry_run: bool = False,
    progress: "Progress | None" = None,
) -> dict[str, Any]:
    """Return the verdict on a version, with every number that it rests on, and keep it as evidence.

    Args:
        workspace: Folder of the workspace.
        version: The new version; None for CURRENT.
        against: The old version; None for the one that the new one was trained from.
        margin: δ, in points: a drop up to this is allowed. One number, or one for each task that the old version had
            learned. None: those of `settings`.
        settings: The `gate:` block; its guard text counts too. None: that of the YAML.
        judged: The `gate` of the new version's version.json: its margins are used again, and no other settings.
        source: The YAML that the user named, if any.
        noise: Load the new version and let it answer its rows again in other batches (`gorp.workspace.noise`). A task's
            margin is then at least one standard error of what changed. Without it, the counts in the evidence of the
            same two versions are used, as long as the answers are the same.
        base: Folder of the base model, if it was moved; only with `noise`.
        trust_remote_code: Whether Python code that comes with the model may run; only with `noise`.
        dry_run: Keep no evidence.
        progress: Receives the progress of `noise`.

    Returns:
        `verdict`; `tasks`: task -> old and new score, drop and its 90 % interval in points, flips, p-values, verdict,
        and for `inconclusive` the number of rows that would decide; `flipped`: task -> the rows whose answer turned
        wrong, then those that turned right; `certainty`: task -> see `gorp.workspace.certainty`; `leaks`: task -> the
        worst and median leak, see `leaks_between`; `guard`: None, or see `gorp.workspace.guard_values.compare_guard`;
        `guard_base`: the same against the base model, None if that is the old version; `noise`: None, or task -> rows,
        how many answers differ, how many turned right or wrong, their standard error in
        points, and the margin without it; `margins`: those used; the digests of both versions and of the answers;
        `notes`: sentences on what was used or left out; `path` of the evidence.

    Raises:
        ConfigError: If a version does not exist, a margin is impossible, or the `gate:` block is not valid.
        CheckpointError: If a score or an answer is missing or damaged, or the two versions were scored on other rows;
            likewise for the guard text, if it decides.
    """
    if isinstance(margin, int | float) and margin not in ALLOWED:
        raise ConfigError(f"--margin is {margin}; it must be {ALLOWED}.")
    store, new, old = _versions(workspace, version, against)
    if judged is None:
        settings = present_gate(store, source) if settings is None else settings
        margins, file = settings.of(old.contains), settings.guard
        guarded = {"wanted": file is not None, "margin": settings.guard_margin}
    else:
        margins, file, decided = judged["margins"], None, judged.get("guard")
        guarded = {"wanted": decided is not None, "margin": decided and decided["margin"]}
    if margin is not None:
        margins = margin if isinstance(margin, Mapping) else dict.fromkeys(old.contains, float(margin))
    path = _path(store, new, old)
    if noise:
        from gorp.workspace.noise import count_noise

        asked: Any = {"base": base, "source": source, "trust_remote_code": trust_remote_code, "progress": progress}
        counts, note = count_noise(store, new, old.contains, **asked), None
    elif base is not None:
        raise ConfigError("--base is needed only to load the model, with --noise.")
    else:
        counts, note = kept_noise(path, Scores(store.root / "eval"), new, old)
    guard, missing = guard_facts(store.root / "eval", old.name, new.name, **guarded)
    other = other_text(file, guard["sha256"]) if guard and file else None
    evidence = evidence_of(store, new, old, margins, counts, guard)
    if not dry_run:
        with Scores(store.root / "eval").writing():
            write_json(path, sealed({**evidence, "time": datetime.now(UTC).isoformat(timespec="seconds")}))
    return {**evidence, "notes": [line for line in (note, missing, other) if line is not None], "path": str(path)}


def evidence_path(workspace: Path, *, version: str | None = None, against: str | None = None) -> Path:
    """Return the file that `gate` keeps the evidence on these versions in; it need not exist.

    Raises:
        ConfigError: If a version does not exist.
    """
    return _path(*_versions(workspace, version, against))


def _path(store: Workspace, new: Version, old: Version) -> Path:
    return store.root / "eval" / "gate" / f"{new.name}-{old.name}.json"


def _versions(workspace: Path, version: str | None, against: str | None) -> tuple[Workspace, Version, Version]:
    """Return the workspace, the new version, and the old one."""
    store = Workspace(workspace)
    new = store.current() if version is None else store.version(version)
    parent = new.record["parent"]
    if against is None and parent is None:
        raise ConfigError(f"{new.name} is the base model; there is no version before it to compare it with.")
    new.check_trained_by_gorp("gorp gate")
    return store, new, store.version(against or parent)


def evidence_of(
    store: Workspace,
    new: Version,
    old: Version,
    margins: Mapping[str, float],
    counts: Mapping[str, Mapping[str, int]] | None,
    guard: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the evidence on a version from the files of the workspace.

    Args:
        store: The workspace.
        new: The new version.
        old: The old version.
        margins: Task -> δ in points.
        counts: Of noise, if there are any.
        guard: The comparison on the guard text, if there is one.
    """
    from gorp.workspace.leaks import leaks_between  # imports torch

    noise = None if counts is None else {task: _noise(counts[task], margins[task]) for task in old.contains}
    if noise is not None:
        margins = {task: max(facts["margin"], facts["standard_error"]) for task, facts in noise.items()}
    return {
        **compare(store, new.name, old, margins, guard),
        "guard_base": None if guard is None else _since_base(store, new, old),
        "noise": noise,
        "leaks": leaks_between(store.lineage(old), new),
        "new": {"version": new.name, "sha256": new.sha256},
        "old": {"version": old.name, "sha256": old.sha256},
        "gorp": gorp.__version__,
    }


def _since_base(store: Workspace, new: Version, old: Version) -> dict[str, Any] | None:
    """Return the comparison with the base model on the guard text; None if `old` is it, or they cannot be compared."""
    base = store.lineage(new)[0]
    if base.name in (old.name, new.name):
        return None
    return guard_facts(store.root / "eval", base.name, new.name, wanted=True, margin=None)[0]


def _noise(counts: Mapping[str, int], margin: float) -> dict[str, Any]:
    """Return the noise floor of a task with its standard error in points, at most `LARGEST_ERROR`.

    √k / n        the standard deviation of (b - c) / n if k = b + c of n rows flip, each way equally likely
    """
    error = min(LARGEST_ERROR, 100 * sqrt(counts["flipped"]) / counts["rows"]) if counts["rows"] else 0.0
    return {**{key: counts[key] for key in COUNTS}, "standard_error": error, "margin": margin}


def compare(
    store: Workspace,
    new: str,
    old: Version,
    margins: Mapping[str, float],
    guard: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the evidence on a version without the digests of the two versions; the new one need not be published.

    Args:
        store: The workspace.
        new: Name of the new version.
        old: The old version.
        margins: Task -> δ in points, for every task that the old version had learned.
        guard: The comparison on the guard text, if there is one.

    Raises:
        CheckpointError: If a score or an answer is missing or damaged, or the two versions were scored on other rows.
    """
    scores = Scores(store.root / "eval")
    tasks = old.contains  # also those that the new version has not learned, if it is on another branch
    answers = {task: paired(scores, task, old.name, new) for task in tasks}
    outcomes = [Flips.of([a["correct"] for a, _ in rows], [b["correct"] for _, b in rows]) for rows in answers.values()]
    each = verdicts(outcomes, [margins[task] / 100 for task in tasks], level=LEVEL)
    for number, rows in enumerate(answers.values()):
        if rows and not any(a["correct"] for a, _ in rows):
            each[number] = "ship"  # no answer was right, so none can be lost
    return {
        "verdict": together([*each, *([guard["verdict"]] if guard and guard["verdict"] else [])]),
        "margins": {task: margins[task] for task in tasks},
        "level": LEVEL,
        "tasks": {
            task: _facts(flips, verdict, margins[task], [a["correct"] for a, _ in answers[task]], count=len(tasks))
            for task, flips, verdict in zip(tasks, outcomes, each, strict=True)
        },
        "flipped": {task: flipped(rows) for task, rows in answers.items()},
        "certainty": {task: certainty(rows) for task, rows in answers.items()},
        "guard": guard,
        "answers": {
            f"{version}-{task}": scores.cells[version][task]["samples"] for task in tasks for version in (old.name, new)
        },
    }


def _facts(flips: Flips, verdict: Verdict, margin: float, right: list[bool], *, count: int) -> dict[str, Any]:
    """Return what is reported on a task, as JSON values; scores and drops in points."""
    low, high = interval(flips, confidence=1 - 2 * LEVEL)  # its upper end is where the test of `ship` decides
    old = 100 * sum(right) / flips.rows if flips.rows else None
    return {
        "verdict": verdict,
        "rows": flips.rows,
        "old": old,
        "new": None if old is None else old - 100 * flips.drop,
        "drop": 100 * flips.drop,
        "interval": [100 * low, 100 * high],
        "lost": flips.lost,
        "won": flips.won,
        "p_any_loss": any_loss(flips),
        "p_inferior": inferior(flips, margin / 100),
        "p_not_inferior": not_inferior(flips, margin / 100),
        "rows_needed": rows_needed(flips, margin / 100, tasks=count) if verdict == "inconclusive" else None,
        "nothing_to_lose": not any(right),
    }
