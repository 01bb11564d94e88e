"""Score versions on tasks; a score that was measured under the same conditions is reused."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch

from gorp.data import Task
from gorp.evaluation import AccuracyMatrix, comparison, score_task, summary
from gorp.evaluation.batches import answer_limit
from gorp.methods import build_method
from gorp.progress import Progress
from gorp.workspace.held import order_of_learning
from gorp.workspace.prepare import Session
from gorp.workspace.scores import Scores, learned_part
from gorp.workspace.seal import digest as digest_of
from gorp.workspace.state import DELTA, METHOD
from gorp.workspace.store import Version


BASE_WEIGHTS = "base"
"""Used instead of the digest of a delta for the base model, which has no delta."""


def score_row(
    session: Session, version: str, digest: str, progress: Progress, *, tasks: Sequence[Task] = (), fresh: bool = False
) -> dict[str, dict[str, Any]]:
    """Return the scores of one row of the score matrix; each is saved as soon as it is measured.

    Args:
        session: The run; its method holds the version's state.
        version: The version's name.
        digest: Its `learned_digest`, or `BASE_WEIGHTS`.
        progress: Receives the progress.
        tasks: The tasks to score; all tasks when empty.
        fresh: Measure again even if a valid score exists.

    Returns:
        Task -> score, rows, metric.
    """
    scores, cells = _scores(session), {}
    for task in tasks or session.tasks:
        conditions = conditions_of(session, task)
        key = score_key(session, digest, conditions)
        cell = None if fresh else scores.find(version, task.name, key)
        if cell is None:
            with (
                session.method.serving(session.model, task.name) as model,
                progress.evaluating(f"{version} on {task.name}") as advance,
            ):
                score = score_task(
                    model,
                    session.tokenizer,
                    task,
                    encoding=session.config.encoding,
                    config=session.config.eval,
                    likelihood=True,
                    progress=advance,
                )
            cell = scores.add(version, score, key, conditions)
        cells[task.name] = {name: cell[name] for name in ("score", "rows", "metric")}
    return cells


def not_learned(
    session: Session, version: str, cells: Mapping[str, Mapping[str, Any]], tasks: Container[str]
) -> list[str]:
    """Return a line for each of the just learned `tasks` on which `version` scores no higher than the base model.

    A task on which the base model scores 100 is left out: there was nothing to learn.
    """
    scores = _scores(session)
    before = scores.cells.get("v0", {})
    return [
        f"{task}: the score {cell['score']:.1f} is not higher than before training. Try more epochs or a higher "
        f"learning rate; the answers are in {scores.samples(version, task)}"
        for task, cell in cells.items()
        if task in tasks and task in before and cell["score"] <= before[task]["score"] < 100
    ]


def load_version(session: Session, version: Version) -> None:
    """Load into the method the state that it had after `version`; for v0, the state before its first task."""
    state, config = version.method_state(session.base["sha256"]), session.config
    session.method.load_state_dict(state or build_method(config.method, config.options, config.lora).state_dict())


def is_scored(session: Session, version: Version) -> bool:
    """Whether the version's row has a valid score for every task."""
    scores, digest = _scores(session), learned_digest(session, version.record["sha256"])
    keys = {task.name: score_key(session, digest, conditions_of(session, task)) for task in session.tasks}
    return all(scores.find(version.name, name, key) for name, key in keys.items())


def learned_digest(session: Session, digests: Mapping[str, str]) -> str:
    """Return a digest of everything a version has learned, for the key of a score.

    Args:
        session: The run; its method says whether the delta alone determines the answers.
        digests: File -> SHA-256 of the version; empty for the base model.
    """
    delta = digests.get(DELTA, BASE_WEIGHTS)
    return delta if session.method.mergeable or METHOD not in digests else digest_of(delta, digests[METHOD])


def write_matrix(session: Session, lineage: Sequence[Version]) -> AccuracyMatrix:
    """Return the score matrix of a lineage, and write it to eval/matrix.csv."""
    scores, names = _scores(session), [spec.name for spec in session.config.tasks]
    tasks = order_of_learning(names, lineage[-1].contains)
    with scores.writing():
        matrix = _scores(session).matrix(lineage, tasks)
        matrix.to_csv(scores.folder / "matrix.csv")
    return matrix


def measures_after(
    session: Session, lineage: Sequence[Version], contains: Sequence[str], cells: dict[str, dict[str, Any]]
) -> dict[str, float | None]:
    """Return AP and the other measures over the tasks learned so far, with `cells` as the row after `lineage`."""
    matrix = _scores(session).matrix(lineage, order_of_learning([task.name for task in session.tasks], contains))
    for name, cell in cells.items():
        matrix.set(len(contains), name, cell["score"], cell["rows"])
    part = learned_part(matrix, len(contains))
    return {} if part is None else summary(part)


def score_key(session: Session, digest: str, conditions: str) -> str:
    """Return the key of a score: a digest of the weights and the conditions."""
    return digest_of(session.base["sha256"], digest, conditions)


def conditions_of(session: Session, task: Task) -> str:
    """Return a digest of rows, prompts, limits and precision, not of the batch size: that changes only the speed."""
    config = session.config
    tokens = answer_limit(config.encoding, config.eval)
    asked = {
        "limit": config.eval.limit,
        "max_new_tokens": tokens,
        "metric": task.metric,
        "comparison": comparison(task),
    }
    labels = list(task.labels or ())
    return digest_of(precision_of(session), session.fingerprints[task.name], labels, asked, asdict(config.encoding))


def precision_of(session: Session) -> list[str]:
    """Return what decides the rounding of scores: dtype, kind of device, and how float32 products are computed."""
    model, backends = session.model, cast(Any, torch.backends)
    return [str(model.dtype), model.device.type, backends.fp32_precision]


def _scores(session: Session) -> Scores:
    return Scores(session.workspace.root / "eval")
