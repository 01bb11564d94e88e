"""The training loop: plain PyTorch, one compiled graph, one checkpoint file.

The Trainer of transformers is not used here: batches are a function of the step number, the schedule can follow the clock, and its own
bookkeeping costs throughput at steps of under two seconds.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from scripts.pretrain import checkpoint
from scripts.pretrain.batches import LlamaBatches, T5Batches
from scripts.pretrain.checkpoint import Progress
from scripts.pretrain.optimizer import Optimizers
from scripts.pretrain.schedule import Budget


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one run."""

    rate: float = 3e-3
    """Peak learning rate of the matrices."""
    embedding_rate: float = 1e-2
    """Peak learning rate of the token embedding."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    pair_shares: tuple[float, float] = (0.1, 0.35)
    """Share of instruction batches in the first and second half of the budget."""
    save_seconds: float = 240.0
    """Seconds between checkpoints; the held-out loss is measured at the same time."""
    log_steps: int = 20
    """Steps between log lines."""
    compiled: bool = True
    """Whether the forward pass is compiled."""
    seed: int = 0
    """Seed of weights, order and noise."""


class Run:
    """A pre-training run in a folder; call it again to go on."""

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        train: T5Batches | LlamaBatches,
        held_out: T5Batches | LlamaBatches,
        budget: Budget,
        settings: Settings,
    ) -> None:
        """Prepare the run and take up its checkpoint.

        Args:
            folder: Where checkpoint, log and curve are written.
            model: The model on its device.
            train: Batches to learn from.
            held_out: Batches to measure on; all of one pass are used, eight at most.
            budget: How long to train.
            settings: The rest.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.model, self.train, self.held_out = folder, model, train, held_out
        self.settings, self.device = settings, model.device
        self.optimizers = Optimizers(model, settings.rate, settings.embedding_rate)
        self.progress = checkpoint.load(folder, model, self.optimizers) or Progress(began=time.time())
        if self.progress.budget:
            budget = Budget(unit=budget.unit, total=min(budget.total, self.progress.budget), decay=budget.decay,
                            warmup_steps=budget.warmup_steps)
        self.budget = budget
        self.forward = torch.compile(model, dynamic=False) if settings.compiled else model

    @property
    def spent(self) -> float:
        """What is spent of the budget, in its unit."""
        return self.progress.tokens if self.budget.unit == "tokens" else time.time() - self.progress.began

    def __call__(self, stop_at: int | None = None) -> Progress:
        """Train until the budget is spent.

        Args:
            stop_at: Step at which to stop sooner, without decay, with a checkpoint.

        Returns:
            The counters.
        """
        saved = time.monotonic()
        while self.spent < self.budget.total and self.progress.step != stop_at:
            if (self.folder / "STOP").exists():
                self.budget = self.budget.ended_early(self.spent)
                self.progress.budget = self.budget.total
                (self.folder / "STOP").unlink()
            self._step()
            if time.monotonic() - saved > self.settings.save_seconds:
                self._measure_and_save()
                saved = time.monotonic()
        self._measure_and_save()
        return self.progress

    def _step(self) -> None:
        began, progress = time.monotonic(), self.progress
        spent = self.spent
        kind, batch = self._next_batch(spent)
        self.model.train()
        loss = self._loss(self.forward, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizers.step(self.budget.rate(progress.step, spent))
        progress.step += 1
        used = batch["attention_mask"] if "attention_mask" in batch else torch.ones_like(batch["input_ids"])
        tokens = int(used.sum())
        if "attention_mask" in batch or batch["labels"].shape != batch["input_ids"].shape:
            tokens += int((batch["labels"] >= 0).sum())
        progress.tokens += tokens
        if progress.step % self.settings.log_steps == 0 or progress.step <= 5:
            seconds = time.monotonic() - began
            self._log(step=progress.step, kind=kind, loss=round(loss.item(), 4), norm=round(norm.item(), 3),
                      tokens=progress.tokens, fraction=round(self.budget.fraction(spent), 4),
                      tokens_per_second=round(tokens / seconds))

    def _next_batch(self, spent: float) -> tuple[str, dict[str, torch.Tensor]]:
        progress = self.progress
        share = self.settings.pair_shares[int(self.budget.fraction(spent) >= 0.5)]
        draw = np.random.default_rng([self.settings.seed, 3, progress.step]).random()
        if self.train.pairs is not None and draw < share:
            progress.pair_batches += 1
            return "pairs", self.train.instructions(progress.pair_batches - 1)
        progress.text_batches += 1
        return "text", self.train.text(progress.text_batches - 1)

    def _loss(self, forward: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        moved = {name: value.to(self.device) for name, value in batch.items()}
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return forward(**moved, use_cache=False).loss

    @torch.no_grad()
    def _measure_and_save(self) -> None:
        self.model.eval()
        batches = min(8, max(1, len(self.held_out.corpus) // self.held_out.rows))
        losses = [self._loss(self.model, self.held_out.text(number)).item() for number in range(batches)]
        loss = sum(losses) / len(losses)
        progress = self.progress
        progress.curve.append({
            "step": progress.step, "tokens": progress.tokens, "seconds": round(time.time() - progress.began, 1),
            "loss": round(loss, 4), "perplexity": round(math.exp(loss), 3),
        })
        checkpoint.save(self.folder, self.model, self.optimizers, progress)
        partial = self.folder / "curve.json.partial"
        partial.write_text(json.dumps(progress.curve, indent=1) + "\n")
        partial.replace(self.folder / "curve.json")
        self._log(held_out=progress.curve[-1])

    def _log(self, **entries: object) -> None:
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.strftime("%H:%M:%S"), **entries}) + "\n")
