"""Judge a new version within a run: the verdict before it is published, the evidence after.

The verdict stands in version.json, so that a version whose process was killed after the rename is settled rightly.
"""

from contextlib import suppress
from typing import Any

from gorp.errors import CheckpointError
from gorp.progress import Progress
from gorp.workspace.gate import compare, evidence_path, gate
from gorp.workspace.guard_values import guard_facts
from gorp.workspace.held import held_facts, held_in_words
from gorp.workspace.prepare import Session
from gorp.workspace.scores import Scores
from gorp.workspace.scoring import learned_digest, score_row
from gorp.workspace.store import Version, Workspace


def is_judged(session: Session, parent: Version) -> bool:
    """Whether a version that is trained from `parent` is judged; the first task has only the guard text to lose."""
    return session.config.gate.enabled and not session.method.joint and bool(parent.contains or session.guard)


def answer_again(session: Session, parent: Version, progress: Progress) -> None:
    """Score `parent` again on the learned tasks whose answers are missing or damaged: the gate compares answers."""
    scores, tasks = Scores(session.workspace.root / "eval"), []
    for task in session.tasks:
        if task.name in parent.contains:
            try:
                scores.answers(parent.name, task.name)
            except CheckpointError:
                tasks.append(task)
    if tasks:
        digest = learned_digest(session, parent.record["sha256"])
        score_row(session, parent.name, digest, progress, tasks=tasks, fresh=True)


def judge(session: Session, name: str, parent: Version) -> dict[str, Any] | None:
    """Return the verdict on the scored version `name` as version.json has it; None if it is not judged."""
    if not is_judged(session, parent):
        return None
    settings, margins = session.config.gate, session.config.gate.of(parent.contains)
    guarded = {"wanted": settings.guard is not None, "margin": settings.guard_margin}
    guard, _ = guard_facts(session.workspace.root / "eval", parent.name, name, **guarded)
    found = compare(session.workspace, name, parent, margins, guard)
    return {
        "verdict": found["verdict"],
        "against": parent.name,
        "accepted": settings.accepts(found["verdict"]),
        "margins": margins,
        "tasks": {task: facts["verdict"] for task, facts in found["tasks"].items()},
        "guard": guard and {key: guard[key] for key in ("verdict", "margin")},
    }


def show_verdict(session: Session, version: Version, progress: Progress) -> dict[str, Any] | None:
    """Keep and show the evidence on a published version; return it if the version is held."""
    judged = version.record.get("gate")
    if judged is None:
        return None
    found = gate(session.workspace.root, version=version.name, judged=judged)
    progress.gate(found)
    if version.accepted:
        if judged["verdict"] == "inconclusive":
            progress.say(f"{version.name} is the current version all the same (gate.inconclusive: ship)")
        return None
    progress.say(held_in_words(version.record["task"], held_facts(version), current=judged["against"]))
    return found


def keep_missing_evidence(workspace: Workspace) -> None:
    """Keep the evidence on the newest version, if the process that published it was killed before it could.

    Without it `gorp gate --verify` and `gorp report` would lack what the verdict rests on. If the answers are no longer
    comparable, nothing is kept.
    """
    version = workspace.versions()[-1]
    judged = version.record.get("gate")
    if judged is None or evidence_path(workspace.root, version=version.name).exists():
        return
    with suppress(CheckpointError):
        gate(workspace.root, version=version.name, judged=judged)
