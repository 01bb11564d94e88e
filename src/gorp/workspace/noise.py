"""The noise floor of a version's answers: how many change when the same rows are answered in other batches.

On a GPU the composition of a batch changes the last bits of the logits, so an answer whose two most likely tokens are
close may change although no weight did. A difference between two versions that is as small says nothing about them.
On a CPU such changes are rare, and usually there is none.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gorp.data import Task
from gorp.errors import CheckpointError, ConfigError
from gorp.evaluation import comparison, score_task
from gorp.evaluation.batches import Progress as Advance
from gorp.evaluation.compare import is_right
from gorp.progress import Progress
from gorp.workspace.evaluate import present_configuration
from gorp.workspace.prepare import Session, prepare
from gorp.workspace.scores import Scores
from gorp.workspace.scoring import conditions_of, load_version
from gorp.workspace.store import Version, Workspace


def count_noise(
    store: Workspace,
    version: Version,
    tasks: Sequence[str],
    *,
    base: Path | None = None,
    source: Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, dict[str, int]]:
    """Let a version answer its rows again, in random batches of half the size, and compare with its recorded answers.

    Args:
        store: The workspace.
        version: The version; it is loaded once.
        tasks: The tasks whose rows are answered.
        base: Folder of the base model, if it was moved.
        source: The YAML that the user named, if any.
        trust_remote_code: Whether Python code that comes with the model may run; see `present_configuration`.
        progress: Receives the progress.

    Returns:
        Task -> `rows`; `differing`, the answers that are not the recorded ones; `flipped`, those of them that turned
        right or wrong.

    Raises:
        ConfigError: If a task is no longer in the configuration.
        CheckpointError: If recorded answers are missing or damaged, or were given to other rows or with other settings.
    """
    scores, progress = Scores(store.root / "eval"), progress or Progress()
    recorded = {task: scores.answers(version.name, task) for task in tasks}  # raises before the model is loaded
    if not tasks:
        return {}
    config = present_configuration(store, progress, source, trust_remote_code=trust_remote_code)
    if missing := [task for task in tasks if task not in {spec.name for spec in config.tasks}]:
        raise ConfigError(f"no task `{missing[0]}` in the configuration, so its rows cannot be answered again.")
    if base is not None:
        if not base.is_dir():
            raise ConfigError(f"--base {base}: there is no such folder. Give the folder of the base model.")
        config = replace(config, model=replace(config.model, path=os.path.abspath(base), revision=None))
    session = prepare(config, store, progress, scored=tasks, guarded=False)
    load_version(session, version)
    found = {}
    for task in session.tasks:
        if scores.cells[version.name][task.name].get("conditions") != conditions_of(session, task):
            raise CheckpointError(
                f"{task.name}: {version.name} was scored on other rows, or with other settings or another device than "
                f"now. `gorp eval --version {version.name}` scores it as now."
            )
        with progress.evaluating(f"{version.name} on {task.name}, in other batches") as advance:
            found[task.name] = _count(session, task, recorded[task.name], advance)
    return {task: found[task] for task in tasks}


def _count(session: Session, task: Task, recorded: Sequence[Mapping[str, Any]], advance: Advance) -> dict[str, int]:
    """Answer the recorded rows of a task again and count the answers that changed."""
    size = max(1, min(session.config.eval.batch_size, len(recorded)) // 2)
    order = np.random.default_rng(0).permutation(len(recorded)).tolist()
    settings, name = replace(session.config.eval, limit=None, batch_size=size), comparison(task)
    done = differing = flipped = 0
    with session.method.serving(session.model, task.name) as model:
        for start in range(0, len(order), size):
            before = {recorded[place]["index"]: recorded[place] for place in order[start : start + size]}
            part = replace(task, eval=task.eval.select(list(before), keep_in_memory=True))
            again = score_task(model, session.tokenizer, part, encoding=session.config.encoding, config=settings)
            for was, now in zip(before.values(), again.samples, strict=True):
                differing += now["answer"] != was["answer"]
                flipped += is_right(now["answer"], was["expected"], name) != was["correct"]
            done += len(before)
            advance(done, len(order))
    return {"rows": len(order), "differing": differing, "flipped": flipped}
