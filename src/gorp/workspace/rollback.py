"""Go back to an earlier version: check that it can still be served, then make it the current one.

The target is checked before the pointer moves: the digests of its files and of its base model, and its answers. It must
answer the rows it was scored on as it did then. The versions after it stay on the disk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gorp.data import Encoding, Task
from gorp.errors import CheckpointError, ConfigError
from gorp.evaluation import EvalConfig, score_task
from gorp.methods import METHODS
from gorp.progress import Progress
from gorp.weights.base import BaseWeights
from gorp.workspace.loaded import base_model, deltas_of, questions
from gorp.workspace.scores import Scores
from gorp.workspace.store import Version, Workspace


ROWS = 16
"""Most rows of each task that the target answers again."""

NOISE = 0.1
"""Largest share of answers that may differ on a GPU, where the batches change the last bits; on a CPU none may."""


def rollback(
    workspace: Path,
    *,
    version: str | None = None,
    base: Path | None = None,
    source: Path | None = None,
    trust_remote_code: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make an earlier version the current one, if it still answers as it did.

    Args:
        workspace: Folder of the workspace.
        version: Name of the version, one that the current version was trained from; None for the one before it.
        base: Folder of the base model, if it was moved.
        source: The YAML that the user named, if any.
        trust_remote_code: Whether Python code that comes with the model may run.
        dry_run: Check everything, and move nothing.
        progress: Receives the progress.

    Returns:
        `version`, `from`, the tasks `forgotten` by it, `answers` that were compared, `differing` among them, and the
        tasks `not_asked`, of which no rows or answers are kept.

    Raises:
        ConfigError: If there is no such version, or the current one was not trained from it.
        CheckpointError: If the version or its base model is damaged, or it no longer answers as it did. The current
            version is then unchanged.
    """
    store, progress = Workspace(workspace), progress or Progress()
    lineage = store.lineage()
    current, target = lineage[-1], _target(store, lineage, version)
    asked = _answers(target, store, base, source, trust_remote_code, progress)
    if not dry_run:
        with store.writing():
            if store.current().sha256 != current.sha256:
                raise CheckpointError(
                    f"{workspace}: another process has made {store.current().name} the current version in the "
                    "meantime. Nothing was changed."
                )
            store.move(target, event="rollback", before=current.name)
    return {
        "version": target.name,
        "from": current.name,
        "forgotten": [task for task in current.contains if task not in target.contains],
        **asked,
    }


def _target(store: Workspace, lineage: Sequence[Version], name: str | None) -> Version:
    """Return the version to go back to."""
    current, earlier = lineage[-1], {version.name: version for version in lineage[:-1]}
    if not earlier:
        raise ConfigError(f"{store.root}: the current version is v0, the base model; there is none before it.")
    if name is None:
        return lineage[-2]
    if name not in earlier:
        there = "is the current version" if name == current.name else f"is not one that {current.name} was trained from"
        store.version(name)  # says so if there is none of this name
        raise ConfigError(f"{name} {there}; it was trained from {', '.join(earlier)}.")
    return earlier[name]


def _answers(
    target: Version,
    store: Workspace,
    base: Path | None,
    source: Path | None,
    trust_remote_code: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Load the target and let it answer rows that it was scored on; return how many answers were compared.

    Raises:
        CheckpointError: If more answers than that differ from the recorded ones.
    """
    found = base_model(target, base, source=source, trust_remote_code=trust_remote_code, progress=progress)
    tasks = [kept for task in questions(target, progress) if (kept := _recorded(store, target, task)) is not None]
    asked = {task.name for task, _ in tasks}
    method = METHODS.get(str(target.record["config"]["method"]["name"]))
    if method is None or not method.mergeable:  # its answers depend on more than one set of weights
        return {"answers": 0, "differing": 0, "not_asked": list(target.contains)}
    model, tokenizer = found.load()
    BaseWeights(model).load(deltas_of(target))
    config = target.record["config"]  # as they were when the answers were recorded
    encoding, evaluation = Encoding(**config.get("encoding", {})), EvalConfig(**config.get("eval", {}))
    count, differing = 0, []
    for task, before in tasks:
        with progress.evaluating(f"{target.name} on {task.name}, as recorded") as advance:
            score = score_task(
                model,
                tokenizer,
                task,
                encoding=encoding,
                config=replace(evaluation, limit=None),
                progress=advance,
            )
        count += len(score.samples)
        for sample in score.samples:
            if sample["answer"] != before[sample["prompt"]]:
                differing.append((task.name, sample["prompt"], before[sample["prompt"]], sample["answer"]))
    if len(differing) > (0 if found.device == "cpu" else NOISE * count):
        name, prompt, was, now = differing[0]
        raise CheckpointError(
            f"{target.name} no longer answers as recorded: {len(differing)} of {count} answers differ; for example of "
            f"{name} to {prompt[-60:]!r}: {was!r} then, {now!r} now. Nothing was changed. Was it scored on another "
            "machine, or with other versions of the packages?"
        )
    return {
        "answers": count,
        "differing": len(differing),
        "not_asked": [name for name in target.contains if name not in asked],
    }


def _recorded(store: Workspace, version: Version, task: Task) -> tuple[Task, Mapping[str, str]] | None:
    """Return the task with the rows that `version` is to answer, and its recorded answers by prompt, or None."""
    try:
        samples = Scores(store.root / "eval").answers(version.name, task.name)
    except CheckpointError:  # absent or damaged
        return None
    answers, indices = {}, []
    prompts = task.eval["prompt"][:]
    for sample in samples[:ROWS]:
        if sample["index"] < len(prompts) and prompts[sample["index"]] == sample["prompt"]:  # the row is the same
            answers[sample["prompt"]] = sample["answer"]
            indices.append(sample["index"])
    return (replace(task, eval=task.eval.select(indices, keep_in_memory=True)), answers) if indices else None
