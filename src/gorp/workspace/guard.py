"""The guard text: text that no task trains on, on which each version is scored besides its tasks.

A loss there shows what the tasks' rows do not: that the model gets worse at what it could do before the first of them.
"""

import math
from collections.abc import Mapping

from gorp.errors import CheckpointError
from gorp.evaluation.text_loss import text_losses, tokens_read
from gorp.progress import Progress
from gorp.workspace.guard_values import read_guard_values, write_guard
from gorp.workspace.prepare import Session
from gorp.workspace.scoring import learned_digest, precision_of, score_key
from gorp.workspace.seal import digest


def measure_guard(
    session: Session, version: str, digests: Mapping[str, str], progress: Progress, *, fresh: bool = False
) -> None:
    """Score a version on the guard text and keep the loss of each text; nothing without a guard text.

    A measurement under the same conditions is reused.

    Args:
        session: The run; its method holds the version's state.
        version: The version's name.
        digests: File -> SHA-256 of the version; empty for the base model.
        progress: Receives the progress.
        fresh: Measure again even if there is one.
    """
    guard = session.guard
    if guard is None or (not fresh and is_guarded(session, version, digests)):
        return
    with session.method.serving(session.model) as model, progress.evaluating(f"{version} on the guard text") as advance:
        losses = text_losses(model, session.tokenizer, guard.texts, progress=advance)
    texts = [
        {"index": each.index, "tokens": each.tokens, "nll": round(each.nll, 6) if math.isfinite(each.nll) else None}
        for each in losses
    ]
    facts = {"key": _key(session, digests), "conditions": _conditions(session), "sha256": guard.sha256}
    write_guard(session.workspace.root / "eval", version, {**facts, "texts": texts})


def is_guarded(session: Session, version: str, digests: Mapping[str, str]) -> bool:
    """Whether a version has a whole measurement on the guard text as it is now; also without a guard text."""
    if session.guard is None:
        return True
    try:
        found = read_guard_values(session.workspace.root / "eval", version)
    except CheckpointError:
        return False
    return found["key"] == _key(session, digests)


def _conditions(session: Session) -> str:
    """Return a digest of the text, how much of it is read, and the precision."""
    assert session.guard is not None
    longest = tokens_read(session.model, session.tokenizer)
    return digest(precision_of(session), session.guard.sha256, len(session.guard.texts), longest)


def _key(session: Session, digests: Mapping[str, str]) -> str:
    return score_key(session, learned_digest(session, digests), _conditions(session))
