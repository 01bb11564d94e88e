"""The embedded demo: the same tasks, model and seed, learned once without protection and once with GORP."""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gorp.adapters import LoraSettings
from gorp.data import Encoding, Task, TaskSpec, load_task
from gorp.evaluation import AccuracyMatrix, EvalConfig, TaskScore, score_task, summary
from gorp.method import Method
from gorp.methods.gorp import Gorp, GorpConfig
from gorp.methods.sequential_lora import SequentialLora
from gorp.models import ModelConfig, load_model
from gorp.progress import Progress
from gorp.training import train_task


DATA = Path(__file__).parent / "data"

TASKS = ("snips", "clinc150", "banking77", "dbpedia")
"""In the order of training: intents of three assistants, then topics of encyclopedia articles."""

LORA = LoraSettings(target_modules="all-linear")
"""The same adapters for both. A model this small wants all of its layers to learn."""

GORP = GorpConfig(full_modules="all-linear")
"""All else as by default."""

COMPARED = ("sequential_lora", "gorp")
"""Fine-tuning as usual, and GORP."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """How much is trained and scored. The defaults take about five minutes on two cores."""

    model: str = "gorp-tiny-t5"
    """The shipped model, a folder, or a hub id."""
    seed: int = 0
    """Decides fresh adapters and the order of rows."""
    train_rows: int = 210
    """Rows of each task that are trained on; 420 are there."""
    eval_rows: int = 100
    """Rows of each task that are scored; 144 to 154 are there."""
    epochs: int = 3
    """Passes over a task's rows."""
    batch_size: int = 16
    """Rows in an optimizer step."""
    learning_rates: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(COMPARED, 1e-3))
    """Of each method."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What one method did."""

    matrix: AccuracyMatrix
    """R, (T + 1) x T."""
    seconds: float
    """Training the tasks and scoring after each, without loading the model and scoring it before the first."""
    samples: list[dict[str, Any]]
    """Answers to the first task's questions after the last task."""

    def to_dict(self) -> dict[str, Any]:
        """`matrix` (R with null where nothing was measured), `ap`, `bwt`, `la`, `seconds`, as JSON values."""
        measures = summary(self.matrix)
        return {
            "matrix": self.matrix.to_dict()["R"],
            **{name: measures[name] for name in ("ap", "bwt", "la")},
            "seconds": round(self.seconds, 2),
        }


def run_demo(settings: DemoSettings, *, progress: Progress | None = None) -> dict[str, DemoResult]:
    """Learn the four tasks in turn with each method of `COMPARED`, scoring after each task.

    Args:
        settings: How much.
        progress: What to show.

    Returns:
        Method -> what it did.

    Raises:
        ModelError: If the model is not there.
    """
    progress = progress or Progress()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tasks = demo_tasks(settings)
    base: dict[str, TaskScore] = {}
    results = {}
    for name in COMPARED:
        model, tokenizer = load_model(ModelConfig(path=settings.model), device)
        run = _Run(settings, _method(name), model, tokenizer, tasks, progress)
        if not base:
            progress.say("scoring the base model")
            base = run.scores(0, tasks)
        started, scores = time.perf_counter(), base
        for score in base.values():
            run.matrix.set(0, score.task, score.score, score.rows)
        for index in range(1, len(tasks) + 1):
            run.learn(index)
            scores = run.scores(index, tasks[:index])
            progress.matrix(run.matrix)
        seconds = time.perf_counter() - started
        results[name] = DemoResult(matrix=run.matrix, seconds=seconds, samples=scores[tasks[0].name].samples)
    return results


def demo_tasks(settings: DemoSettings) -> list[Task]:
    """The four tasks, limited as `settings` says, balanced over their labels."""
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


def _method(name: str) -> Method:
    return SequentialLora(lora=LORA) if name == "sequential_lora" else Gorp(GORP, LORA)


class _Run:
    """One method on its own copy of the model."""

    def __init__(
        self, settings: DemoSettings, method: Method, model: Any, tokenizer: Any, tasks: list[Task], progress: Progress
    ) -> None:
        self.settings, self.method, self.model, self.tokenizer = settings, method, model, tokenizer
        self.tasks, self.progress = tasks, progress
        self.encoding = Encoding(max_prompt_tokens=64, max_completion_tokens=24)
        self.matrix = AccuracyMatrix([task.name for task in tasks])
        method.setup(model)

    def learn(self, index: int) -> None:
        """Train on task number `index`, counted from 1."""
        task, settings = self.tasks[index - 1], self.settings
        assert task.train is not None
        training = {
            "learning_rate": settings.learning_rates[self.method.name],
            "num_train_epochs": settings.epochs,
            "per_device_train_batch_size": settings.batch_size,
            "save_strategy": "no",
        }
        with (
            tempfile.TemporaryDirectory() as folder,
            self.progress.training(f"{self.method.name} on {task.name}") as callback,
        ):
            train_task(
                self.model,
                self.tokenizer,
                self.method,
                task.train,
                name=task.name,
                index=index,
                seed=settings.seed,
                training=training,
                encoding=self.encoding,
                folder=Path(folder),
                callbacks=(callback,),
            )

    def scores(self, row: int, tasks: list[Task]) -> dict[str, TaskScore]:
        """Score `tasks` after task number `row`, and fill in the matrix."""
        config, found = EvalConfig(batch_size=64), {}
        with self.method.serving(self.model) as model:
            for task in tasks:
                with self.progress.evaluating(f"{self.method.name} on {task.name}") as advance:
                    score = score_task(
                        model, self.tokenizer, task, encoding=self.encoding, config=config, progress=advance
                    )
                self.matrix.set(row, task.name, score.score, score.rows)
                found[task.name] = score
        return found
