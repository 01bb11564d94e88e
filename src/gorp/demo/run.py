"""Run the demo: the same tasks, model and seed, trained once with sequential LoRA and once with GORP."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gorp.data import Encoding, Task, TaskSpec, load_task
from gorp.evaluation import AccuracyMatrix, EvalConfig, TaskScore, score_task, summary
from gorp.methods import build_method
from gorp.methods.gorp import GorpConfig
from gorp.models.load import ModelConfig, load_model
from gorp.progress import Progress
from gorp.sequence import Stage, learn_sequence
from gorp.training import TaskResult, train_task


DATA = Path(__file__).parent / "data"

TASKS = ("snips", "clinc150", "banking77", "dbpedia")
"""Order of training: intents of three assistants, then topics of encyclopedia articles."""

CONFIGS = {"sequential_lora": None, "gorp": GorpConfig(full_modules="all-linear")}
"""Configuration of each method; other options have their defaults."""

COMPARED = tuple(CONFIGS)
"""The methods: ordinary LoRA fine-tuning, and GORP."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Size of the demo. The defaults take about five minutes on two cores."""

    model: str = "gorp-tiny-t5"
    """The shipped model, a folder, or a hub id."""
    seed: int = 0
    """Seed of the adapters' initial weights and of the order of rows."""
    train_rows: int = 210
    """Training rows of each task; 420 are available."""
    eval_rows: int = 100
    """Scored rows of each task; 144 to 154 are available."""
    epochs: int = 3
    """Passes over a task's rows."""
    batch_size: int = 16
    """Rows in an optimizer step."""
    learning_rates: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(COMPARED, 1e-3))
    """Learning rate of each method."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Result of one method."""

    matrix: AccuracyMatrix
    """R, (T + 1) x T."""
    seconds: float
    """Time of training and of scoring after each task; loading the model and scoring the base model do not count."""
    samples: list[dict[str, Any]]
    """Answers to the first task's questions, after the last task."""

    def to_dict(self) -> dict[str, Any]:
        """Return `matrix` (R, null where not measured), `ap`, `bwt`, `la` and `seconds` as JSON values."""
        metrics = summary(self.matrix)
        return {
            "matrix": self.matrix.to_dict()["R"],
            **{name: metrics[name] for name in ("ap", "bwt", "la")},
            "seconds": round(self.seconds, 2),
        }


def run_demo(settings: DemoSettings, *, progress: Progress | None = None) -> dict[str, DemoResult]:
    """Train the four tasks in turn with each method of `COMPARED`, and score after each task.

    Args:
        settings: Model, sizes and seed.
        progress: Display of the progress; None shows nothing.

    Returns:
        Method -> its result.

    Raises:
        ModelError: If the model cannot be found.
    """
    tasks, base = demo_tasks(settings), {}
    return {name: _learn(name, settings, tasks, base, progress or Progress()) for name in COMPARED}


def demo_tasks(settings: DemoSettings) -> list[Task]:
    """Load the four tasks, limited to the rows of `settings` and balanced over their labels."""
    tasks = []
    for name in TASKS:
        about = json.loads((DATA / name / "task.json").read_text(encoding="utf-8"))
        spec = TaskSpec(
            name=name,
            train=str(DATA / name / "train.jsonl"),
            eval=str(DATA / name / "eval.jsonl"),
            format="text_label",
            template=about["template"],
            labels=about["labels"],
            metric=about["metric"],
            dev_rows=0,
            limit_train=settings.train_rows,
            limit_eval=settings.eval_rows,
        )
        tasks.append(load_task(spec))
    return tasks


def _learn(
    name: str, settings: DemoSettings, tasks: list[Task], base: dict[str, TaskScore], progress: Progress
) -> DemoResult:
    """Train one method on a fresh copy of the model.

    `base` caches the base model's scores: the first method fills it, the second one reads it.
    """
    model, tokenizer = load_model(ModelConfig(path=settings.model), "cuda" if torch.cuda.is_available() else "cpu")
    method = build_method(name, CONFIGS[name])
    encoding, config = Encoding(max_prompt_tokens=64, max_completion_tokens=24), EvalConfig(batch_size=64)
    training = {
        "learning_rate": settings.learning_rates[name],
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "save_strategy": "no",
    }
    scores: dict[str, TaskScore] = {}

    def train(stage: Stage[Task], **where: Any) -> TaskResult:
        where |= {"name": stage.name, "index": stage.index, "seed": settings.seed}
        return train_task(model, tokenizer, method, stage.rows, training=training, encoding=encoding, **where)

    def score(served: Any, task: Task, row: int) -> tuple[float, int]:
        newest = scores if row else base
        if row or task.name not in base:
            with progress.evaluating(f"{name} on {task.name}") as advance:
                newest[task.name] = score_task(
                    served, tokenizer, task, encoding=encoding, config=config, progress=advance
                )
        return newest[task.name].score, newest[task.name].rows

    def columns(row: int) -> range:
        return range(row or len(tasks))

    if not base:
        progress.say("scoring the base model")
    learned = learn_sequence(
        method, model, tasks, train=train, score=score, columns=columns, seed=settings.seed, progress=progress
    )
    samples = scores[tasks[0].name].samples
    return DemoResult(matrix=learned.matrix, seconds=learned.seconds, samples=samples)
