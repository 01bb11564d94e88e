"""Write a version's weights in one form, read them back, and measure how they differ from the live model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gorp.data import Task, encode_prompts, forms_of
from gorp.evaluation import TaskScore, score_task
from gorp.export import lowrank
from gorp.export.adapter import read_pairs, target_names, write_adapter
from gorp.export.check import check_adapter, check_merged, difference, fixed_rows, logits_of, with_adapter
from gorp.export.merged import merge, weight_digests, write_merged
from gorp.layers.names import layer_name
from gorp.progress import Progress
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta
from gorp.workspace.leaks import adapter_leaks, served_leaks
from gorp.workspace.loaded import Base
from gorp.workspace.store import Version


CHECK_ROWS = 4
"""Most prompts whose logits are compared."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The adapter of a version, before it is written."""

    lineage: list[Version]
    """From v0 to the version."""
    deltas: Mapping[str, WeightDelta]
    """The version's deltas."""
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    """Name of a weight -> B (m x r) and A (r x n), in the dtype of the export."""
    rank: int
    why: str | None
    """Why this rank; None if the user gave it."""

    @classmethod
    def of(
        cls,
        lineage: list[Version],
        deltas: Mapping[str, WeightDelta],
        *,
        rank: int | None,
        dtype: torch.dtype,
        device: str,
        progress: Progress,
    ) -> "Adapter":
        """Compute the pairs of the last version of `lineage`, one weight at a time."""
        spectra: dict[str, lowrank.Spectrum] = {}
        with progress.counting(f"{lineage[-1].name}: singular values of the change") as advance:
            for name, delta in deltas.items():
                spectra[name] = lowrank.spectrum(delta, device)
                advance(len(spectra), len(deltas))
        chosen, why = (rank, None) if rank is not None else lowrank.choose_rank(spectra)
        pairs = {name: lowrank.pair(item, chosen, dtype) for name, item in spectra.items()}
        return cls(lineage=lineage, deltas=deltas, pairs=pairs, rank=chosen, why=why)

    @property
    def name(self) -> str:
        """Name of the version."""
        return self.lineage[-1].name

    @property
    def size(self) -> int:
        """Bytes of the pairs."""
        return sum(part.nbytes for pair in self.pairs.values() for part in pair)


@dataclass(frozen=True, kw_only=True)
class Live:
    """The base model in memory, its W₀, and what it is asked."""

    base: Base
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weights: BaseWeights
    tasks: Sequence[Task]
    progress: Progress

    @classmethod
    def load(cls, base: Base, tasks: Sequence[Task], progress: Progress) -> "Live":
        """Load the base model."""
        progress.say(f"loading {base.name}")
        model, tokenizer = base.load()
        weights = BaseWeights(model)
        return cls(base=base, model=model, tokenizer=tokenizer, weights=weights, tasks=tasks, progress=progress)

    def rows(self, tasks: Sequence[Task]) -> list[list[int]]:
        """Return prompts of `tasks` in turn as tokens, at most `CHECK_ROWS`; fixed rows where there are no prompts."""
        rows: list[list[int]] = []
        asked: Any = {"encoder_decoder": bool(self.model.config.is_encoder_decoder), "encoding": self.base.encoding}
        for index in range(CHECK_ROWS):
            for task in tasks:
                if index < len(task.eval) and len(rows) < CHECK_ROWS:
                    part = task.eval.select([index], keep_in_memory=True)
                    rows += encode_prompts(list(part["prompt"]), self.tokenizer, forms=forms_of(part), **asked)
        return rows or fixed_rows(self.tokenizer)

    def answers(self, model: Any, tasks: Sequence[Task], what: str) -> list[TaskScore]:
        """Return the score of `model` on each of `tasks`; `what` names the model in the progress."""
        scores = []
        for task in tasks:
            with self.progress.evaluating(f"{what} on {task.name}") as advance:
                asked: Any = {"encoding": self.base.encoding, "config": self.base.evaluation, "progress": advance}
                scores.append(score_task(model, self.tokenizer, task, **asked))
        return scores


def write_merged_version(
    folder: Path, live: Live, lineage: Sequence[Version], deltas: Mapping[str, WeightDelta], dtype: torch.dtype | None
) -> dict[str, Any]:
    """Write round(W₀ + delta) and read it back.

    Args:
        folder: Where to write.
        live: The base model; it is merged in place and cannot be used afterwards.
        lineage: From v0 to the version.
        deltas: Those of the version.
        dtype: Of the export; None for that of the model.

    Returns:
        `check` and `served_leak`, for gorp-export.json.
    """
    model, trusted = live.model, live.base.config.trust_remote_code
    rows = live.rows(live.tasks)
    live.weights.load(deltas)
    served = logits_of(model, rows)
    merge(model, live.weights, deltas, dtype)
    merged, digests = logits_of(model, rows), weight_digests(model)
    live.progress.say("measuring what rounding does to the protected directions")
    leaks = served_leaks(lineage[:-1], live.weights, deltas)
    live.progress.say("writing the weights, and reading them back")
    write_merged(model, live.base.folder, folder, code=trusted)
    encoder_decoder, device = bool(model.config.is_encoder_decoder), model.device
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)  # frees it before the written model is read
    read = check_merged(
        folder, digests, rows, merged, encoder_decoder=encoder_decoder, device=device, trust_remote_code=trusted
    )
    check = {"rows": len(rows), "prompts": bool(live.tasks), "difference": read, "live": difference(served, merged)}
    return {"check": check, "served_leak": leaks}


def write_adapter_version(folder: Path, live: Live, adapter: Adapter) -> dict[str, Any]:
    """Write one adapter, read it back, and measure its error, its answers and its leak.

    Args:
        folder: Where to write.
        live: The base model; afterwards it has W₀ as its weights.
        adapter: The pairs.

    Returns:
        `rank`, `why`, `error`, `errors`, `check`, `answers` and `served_leak`, for gorp-export.json.
    """
    model, weights = live.model, live.weights
    tasks = [task for task in live.tasks if task.name in adapter.lineage[-1].contains]
    rows = live.rows(tasks)
    targets = target_names([layer_name(name) for name in adapter.pairs], model)
    encoder_decoder = bool(model.config.is_encoder_decoder)
    write_adapter(folder, adapter.pairs, targets=targets, base=live.base.name, encoder_decoder=encoder_decoder)
    written = read_pairs(folder)
    lost = {name: lowrank.distance(adapter.deltas[name], *pair) for name, pair in written.items()}
    norms = {name: adapter.deltas[name].norm() for name in written}

    weights.load(adapter.deltas)
    served_logits, served = logits_of(model, rows), live.answers(model, tasks, f"{adapter.name} as served")
    weights.load({name: WeightDelta.of_factors(up, down.mT) for name, (up, down) in written.items()})
    expected = logits_of(model, rows)
    weights.load({})
    with with_adapter(model, folder, list(written)) as peft:
        logits, answered = logits_of(peft, rows), live.answers(peft, tasks, f"{adapter.name} as base + adapter")
    return {
        "rank": adapter.rank,
        "why": adapter.why,
        "error": float(np.linalg.norm(list(lost.values())) / np.linalg.norm(list(norms.values()))),
        "errors": {layer_name(name): lost[name] / norms[name] for name in lost},
        "check": {
            "rows": len(rows),
            "prompts": bool(tasks),
            "difference": check_adapter(expected, logits, model.dtype),
            "live": difference(served_logits, logits),
        },
        "answers": {one.task: _compared(one, other) for one, other in zip(served, answered, strict=True)},
        "served_leak": adapter_leaks(adapter.lineage[:-1], written),
    }


def _compared(served: TaskScore, exported: TaskScore) -> dict[str, Any]:
    """Return both scores, and how many answers differ."""
    pairs = zip(served.samples, exported.samples, strict=True)
    differ = sum(one["answer"] != other["answer"] for one, other in pairs)
    return {"served": served.score, "exported": exported.score, "rows": served.rows, "differ": differ}
