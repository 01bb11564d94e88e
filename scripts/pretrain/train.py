"""The training loop: plain PyTorch, a compiled forward pass, one checkpoint file.

The Trainer of transformers is not used here: batches are a function of the step number, the schedule can follow the
clock, and its own bookkeeping costs throughput at steps of a few milliseconds.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gorp.storage import write_json
from scripts.pretrain import checkpoint
from scripts.pretrain.batches import LlamaBatches, T5Batches, tokens_of
from scripts.pretrain.checkpoint import Progress
from scripts.pretrain.objective import Objective
from scripts.pretrain.optimizer import Optimizer
from scripts.pretrain.reading import Reading
from scripts.pretrain.schedule import Budget


Batch = dict[str, torch.Tensor]

MEASURED_BATCHES = 40
"""Batches from which the scales of the distance are taken: 2,560 texts at 16 rows, for covariances of a few hundred."""

HELD_OUT_BATCHES = 8
"""Batches of held-out text that are measured, at most."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one run."""

    rate: float = 2e-3
    """Peak rate of every tensor, in its own deviations."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    reading_shares: tuple[float, float]
    """Share of batches read with the teacher, in the first and second half of the budget."""
    pair_shares: tuple[float, float]
    """Share of instruction batches likewise; the rest is text."""
    save_seconds: float = 240.0
    """Seconds between checkpoints; the held-out loss is measured at the same time."""
    log_steps: int = 20
    """Steps between log lines."""
    compiled: bool = True
    """Whether the forward pass is compiled."""
    seed: int = 0
    """Seed of the choice between text and instructions."""


class Run:
    """A pre-training run in a folder."""

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        train: T5Batches | LlamaBatches,
        held_out: T5Batches | LlamaBatches,
        reading: Reading,
        budget: Budget,
        settings: Settings,
    ) -> None:
        """Prepare the run and take up its checkpoint, if there is one.

        Args:
            folder: Where checkpoint, log and curve are written.
            objective: The model on its device, with its loss.
            train: Batches to learn from.
            held_out: Batches to measure on.
            reading: Batches read with the teacher.
            budget: How long to train.
            settings: The rest.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.objective, self.train, self.held_out = folder, objective, train, held_out
        self.settings, self.device, self.reading = settings, objective.model.device, reading
        objective.measure([reading.batch(number) for number in range(MEASURED_BATCHES)])
        self.optimizer = Optimizer(objective, settings.rate)
        self.progress = checkpoint.load(folder, objective, self.optimizer) or Progress(began=time.time())
        self.budget = budget
        self.forward = torch.compile(objective, dynamic=False) if settings.compiled else objective

    @property
    def spent(self) -> float:
        """What is spent of the budget, in its unit."""
        return self.progress.tokens if self.budget.unit == "tokens" else time.time() - self.progress.began

    def __call__(self, stop_at: int | None = None, session_seconds: float = math.inf) -> Progress:
        """Train until the budget is spent.

        Args:
            stop_at: Step at which to stop sooner, with a checkpoint and without decay.
            session_seconds: Seconds after which to stop likewise.

        Returns:
            The counters.
        """
        began = saved = time.monotonic()
        self._shorten()
        while self.spent < self.budget.total and self.progress.step != stop_at:
            if time.monotonic() - began > session_seconds:
                break
            self._shorten()
            self._step()
            if time.monotonic() - saved > self.settings.save_seconds:
                self._measure_and_save()
                saved = time.monotonic()
        self._measure_and_save()
        return self.progress

    def _shorten(self) -> None:
        """Take up an early end: one asked for by the file STOP, or one that an earlier session began."""
        if (self.folder / "STOP").exists():
            self.progress.budget = self.budget.ended_early(self.spent).total
            (self.folder / "STOP").unlink()
        if self.progress.budget and self.progress.budget < self.budget.total:
            self.budget = Budget(
                unit=self.budget.unit,
                total=self.progress.budget,
                decay=self.budget.decay,
                warmup_steps=self.budget.warmup_steps,
            )

    def _step(self) -> None:
        began, progress, spent = time.monotonic(), self.progress, self.spent
        kind, batch = self._next_batch(spent)
        self.objective.train()
        loss, distances = self._loss(self.forward, batch)
        (loss + sum(distances)).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.settings.clip)
        self.optimizer.step(self.budget.rate(progress.step, spent))
        progress.step += 1
        progress.tokens += (tokens := tokens_of(batch))
        if progress.step % self.settings.log_steps < 3 or progress.step <= 5:
            self._log(
                step=progress.step,
                kind=kind,
                loss=round(loss.item(), 4),
                distances=[round(distance.item(), 4) for distance in distances],
                norm=round(norm.item(), 3),
                tokens=progress.tokens,
                fraction=round(self.budget.fraction(spent), 4),
                tokens_per_second=round(tokens / (time.monotonic() - began)),
            )

    def _next_batch(self, spent: float) -> tuple[str, Batch]:
        progress, half = self.progress, int(self.budget.fraction(spent) >= 0.5)
        reading, pairs = self.settings.reading_shares[half], self.settings.pair_shares[half]
        draw = np.random.default_rng([self.settings.seed, 3, progress.step]).random()
        if draw < reading:
            progress.reading_batches += 1
            return "reading", self.reading.batch(progress.reading_batches - 1)
        if self.train.pairs is not None and draw < reading + pairs:
            progress.pairs_batches += 1
            return "pairs", self.train.instructions(progress.pairs_batches - 1)
        progress.text_batches += 1
        return "text", self.train.text(progress.text_batches - 1)

    def _loss(self, forward: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        moved = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        inputs = {name: moved[name] for name in ("input_ids", "attention_mask", "labels") if name in moved}
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss, hidden = forward(**inputs)
        return loss, list(self.objective.distance(hidden, moved)) if "owner" in moved else []

    @torch.no_grad()
    def _measure_and_save(self) -> None:
        self.objective.eval()
        batches = min(HELD_OUT_BATCHES, max(1, len(self.held_out.corpus) // self.held_out.rows))
        losses = [self._loss(self.objective, self.held_out.text(number))[0].item() for number in range(batches)]
        loss = sum(losses) / len(losses)
        progress = self.progress
        progress.curve.append(
            {
                "step": progress.step,
                "tokens": progress.tokens,
                "seconds": round(time.time() - progress.began, 1),
                "loss": round(loss, 4),
                "perplexity": round(math.exp(loss), 3),
            }
        )
        checkpoint.save(self.folder, self.objective, self.optimizer, progress)
        write_json(self.folder / "curve.json", progress.curve)
        self._log(held_out=progress.curve[-1])

    def _log(self, **entries: object) -> None:
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.strftime("%H:%M:%S"), **entries}) + "\n")
