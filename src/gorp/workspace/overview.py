"""All that a report on a workspace says, as JSON values: the state, the verdict on the newest version, the evidence.

Only JSON files are read, and nothing is written.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gorp.errors import CheckpointError, ConfigError
from gorp.evaluation import AccuracyMatrix
from gorp.storage import file_sha256
from gorp.workspace.gate import evidence_path, gate
from gorp.workspace.gate_config import present_gate
from gorp.workspace.guard_values import guard_levels
from gorp.workspace.scores import Scores
from gorp.workspace.status import status
from gorp.workspace.store import Version, Workspace


def overview(folder: Path, *, source: Path | None = None) -> dict[str, Any]:
    """Return what a report on a workspace says.

    Args:
        folder: The workspace.
        source: The YAML that the user named, if any.

    Returns:
        The keys of `status`, and: `subject`, the version that is judged, which is the current one or a newer one that
        the gate holds; `subject_matrix`, the scores of the versions up to it; `gate`, the evidence on it, see
        `gorp.workspace.gate.gate`, None if it cannot be judged, and then `not_judged` says why; `guard`: version -> its
        loss `nll` on the guard text and the `rows`, for the versions up to the subject that were scored on the same
        text as it; `questions`, of the
        answers that changed: task -> row -> prompt without the template; `layers`, of the current version: name,
        directions, capacity and released of each, in the order of the model; `budget`; `evidence`: digests, packages,
        device and seed, and the kept file of the gate; `commands`: what a command shows -> the command.

    Raises:
        ConfigError: If it is a protection folder, which has no rows or scores of gorp.
        CheckpointError: If the folder is not a workspace or is damaged.
    """
    store = Workspace(folder)
    current = store.current()
    current.check_trained_by_gorp("gorp report")
    state = status(folder, config=source)
    subject = store.version(_subject(state))
    found, reason = _judged(store, subject, source)
    evidence = _evidence(store, current, subject, found)
    return state | {
        "subject": subject.name,
        "subject_matrix": _matrix(store, subject, state),
        "gate": found,
        "not_judged": reason,
        "guard": guard_levels(store.root / "eval", [version.name for version in store.lineage(subject)]),
        "questions": _questions(store, subject, found),
        "layers": _layers(current),
        "budget": (current.record["config"].get("method") or {}).get("budget"),
        "evidence": evidence,
        "commands": _commands(store, subject, evidence["gate"] is not None, source),
    }


def _subject(state: Mapping[str, Any]) -> str:
    """Return the newest version that the gate holds, if it is newer than the current one; else the current one."""
    names = [state["current"], *(facts["version"] for facts in state["held"].values())]
    return max(names, key=lambda name: int(name[1:]))


def _matrix(store: Workspace, subject: Version, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the score matrix of the lineage of a version, with the tasks that it has learned."""
    tasks = subject.contains or AccuracyMatrix.from_dict(state["matrix"]).tasks
    return Scores(store.root / "eval").matrix(store.lineage(subject), tasks).to_dict()


def _judged(store: Workspace, subject: Version, source: Path | None) -> tuple[dict[str, Any] | None, str | None]:
    """Return the evidence on a version and None, or None and the reason."""
    if subject.record["parent"] is None:
        return None, "no task has been learned yet"
    judged = subject.record.get("gate")  # with the settings that decided, if it was judged before
    if judged is not None and judged.get("guard") is None and _guarded(store, source):
        judged = judged | {"guard": {"margin": None}}  # named later, so it did not decide
    try:
        found = gate(store.root, version=subject.name, judged=judged, source=source, dry_run=True)
    except CheckpointError as error:
        return None, str(error)
    return {key: value for key, value in found.items() if key != "path"}, None


def _guarded(store: Workspace, source: Path | None) -> bool:
    """Whether the YAML names a guard text now."""
    try:
        return present_gate(store, source).guard is not None
    except ConfigError:  # `gorp train` and `gorp gate` say so
        return False


def _questions(store: Workspace, subject: Version, found: Mapping[str, Any] | None) -> dict[str, dict[int, str]]:
    """Return for each task with answers that changed: index of such a row -> its prompt without the template."""
    questions, scores = dict[str, dict[int, str]](), Scores(store.root / "eval")
    for task, rows in (found["flipped"] if found else {}).items():
        if rows:
            answers = scores.answers(subject.name, task)
            every = {
                answer["index"]: question
                for answer, question in zip(answers, distinct([answer["prompt"] for answer in answers]), strict=True)
            }
            questions[task] = {row["index"]: every[row["index"]] for row in rows}
    return questions


def distinct(prompts: Sequence[str]) -> list[str]:
    r"""Return each prompt without the first and the last lines that all of them share, as those of a template.

    A single prompt, and one of which nothing would be left, stay whole.

    Example:
        >>> distinct(["Which intent?\nplay jazz\nAnswer:", "Which intent?\nrain today?\nAnswer:"])
        ['play jazz', 'rain today?']
    """
    lines = [prompt.split("\n") for prompt in prompts]
    if len(lines) < 2:
        return list(prompts)
    shortest = min(map(len, lines))
    first = next((i for i in range(shortest) if len({line[i] for line in lines}) > 1), shortest)
    last = next((i for i in range(shortest - first) if len({line[-1 - i] for line in lines}) > 1), shortest - first)
    return ["\n".join(line[first : len(line) - last]) or "\n".join(line) for line in lines]


def _layers(version: Version) -> list[dict[str, Any]]:
    weights: Mapping[str, Mapping[str, Any]] = version.record.get("weights") or {}
    return [
        {
            "name": name.removesuffix(".weight"),
            "directions": weights[name]["directions"],
            "capacity": weights[name]["capacity"],
            "released": weights[name]["released"],
        }
        for name in sorted(weights, key=_in_model)
        if weights[name].get("capacity") is not None
    ]


def _in_model(name: str) -> list[tuple[int, str]]:
    """Return a sort key in which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _evidence(store: Workspace, current: Version, subject: Version, found: Mapping[str, Any] | None) -> dict[str, Any]:
    record = current.record
    path = None if found is None else evidence_path(store.root, version=subject.name)
    kept = path is not None and path.is_file()
    return {
        "base": {"path": record["base"]["path"], "sha256": record["base"]["sha256"]},
        "versions": {version.name: version.sha256 for version in store.lineage()} | {subject.name: subject.sha256},
        "files": dict(record["sha256"]),
        "gate": {"path": str(path.relative_to(store.root)), "sha256": file_sha256(path)} if kept and path else None,
        "packages": dict(record.get("packages", {})),
        "device": record.get("device"),
        "seed": record.get("seed"),
    }


def _commands(store: Workspace, subject: Version, kept: bool, source: Path | None) -> dict[str, str]:
    """Return commands for the folder that the workspace is in; its path is nobody else's business.

    Those that compare name both versions, so that they mean the same when another version is current. The base model
    has nothing before it.
    """
    name = shlex.quote(store.root.resolve().name if source is None else source.name)
    commands, parent = {"Check every digest and the base model:": f"gorp doctor {name}"}, subject.record["parent"]
    if parent is not None:
        judge = f"gorp gate {name} --version {subject.name}"
        commands |= {
            "Compute the verdict again from the recorded answers:": f"{judge} --verify" if kept else judge,
            "See what changed in answers, weights and settings:": f"gorp diff {name} {parent} {subject.name}",
        }
    return commands
