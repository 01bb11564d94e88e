"""Run one cell of a comparison: a method, an order of tasks, and a seed. Its result is one JSON file."""

import hashlib
import json
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gorp.data import Encoding, Task, load_cl_benchmark
from gorp.evaluation import EvalConfig, score_task, summary
from gorp.layers.lora import LoraSettings
from gorp.methods import METHODS, build_method
from gorp.methods.base import Method
from gorp.models.load import ModelConfig, load_model
from gorp.sequence import Stage, T, learn_sequence
from gorp.training import TaskResult, train_task


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Everything that determines the numbers of one run, and therefore its file name."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the method's configuration."""
    lora: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    model: str
    """Folder or hub id."""
    order: tuple[str, ...]
    """Tasks of the CL benchmark, in the order of training."""
    train_rows: int = 1000
    eval_rows: int = 300
    dev_rows: int = 200
    split: Literal["dev", "eval"] = "eval"
    """Rows for scoring: `dev` (split off train) to choose settings, `eval` (the test rows) for reported numbers."""
    metric: Literal["exact_match", "label_ranking"] = "exact_match"
    cells: Literal["needed", "ends"] = "needed"
    """Entries of R to measure: all that the metrics use, or the diagonal and the last row (`ends`, for trials)."""
    max_prompt_tokens: int = 128
    random_weights: bool = False
    """Start from an untrained model of the same shape, to measure the benefit of pretraining."""
    seed: int = 0

    def key(self) -> str:
        """Return the file name: method, seed and a digest of everything else."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.method}-seed{self.seed}-{digest}"

    def columns(self, row: int) -> list[int]:
        """Return the indices (from 0) of the tasks to score after task `row`.

        With `needed`: all tasks before the first and after the last one, otherwise the learned ones and the next. With
        `ends`: none before the first task, all after the last one, otherwise only the newest.
        """
        if row == len(self.order) or (row == 0 and self.cells == "needed"):
            return list(range(len(self.order)))
        return list(range(row + 1)) if self.cells == "needed" else [row - 1] if row else []


def run_cell(cell: Cell, data: Path) -> dict[str, Any]:
    """Train the sequence and score it. The result has R, AP, BWT, FWT, forgetting, LA, costs and the leak.

    Args:
        cell: The cell to run.
        data: Root of the CL benchmark; not part of the cell, because it does not change the numbers.
    """
    started = time.perf_counter()
    tasks = load_tasks(cell, data)
    model, tokenizer = load(cell)
    encoding = Encoding(max_prompt_tokens=cell.max_prompt_tokens)
    config = EvalConfig(batch_size=64, max_new_tokens=16)

    def train(method: Method, task: Task, rows: Dataset, **where: Any) -> TaskResult:
        return train_task(model, tokenizer, method, rows, encoding=encoding, **where)

    def score(served: nn.Module, task: Task, row: int) -> tuple[float, int]:
        result = score_task(served, tokenizer, task, split=cell.split, encoding=encoding, config=config)
        return result.score, result.rows

    return learn_in_turn(cell, model, tasks, train=train, score=score, started=started)


def learn_in_turn(
    cell: Cell,
    model: nn.Module,
    tasks: Sequence[T],
    *,
    train: Callable[..., TaskResult],
    score: Callable[[nn.Module, T, int], tuple[float, int]],
    started: float,
) -> dict[str, Any]:
    """Train the tasks one after another with the cell's method, score after each, and return the result.

    Args:
        cell: The cell to run.
        model: The base model, not yet changed by a method.
        tasks: In the cell's order.
        train: Called with the method, the newest task, the rows, and the arguments `name`, `index`, `seed`, `training`,
            `folder`, `callbacks`, `num_tasks` of `train_task`.
        score: (served model, task, row of the matrix) -> (percent correct, number of rows).
        started: `time.perf_counter()` when the cell began, before loading.
    """
    config = METHODS[cell.method].Config(**cell.options)
    method = build_method(cell.method, config, LoraSettings(**cell.lora))

    def train_stage(stage: Stage[T], **where: Any) -> TaskResult:
        newest, last = stage.tasks[-1], len(stage.contains)  # a joint stage also has the index of the last task
        where |= {"name": newest.name, "index": last, "seed": cell.seed}
        return train(method, newest, stage.rows, training={"save_strategy": "no", **cell.training}, **where)

    learned = learn_sequence(method, model, tasks, train=train_stage, score=score, columns=cell.columns, seed=cell.seed)
    results = learned.results
    return {
        "cell": asdict(cell),
        **summary(learned.matrix),
        "matrix": learned.matrix.to_dict(),
        "train_seconds": sum(r.seconds for r in results),
        "boundary_seconds": sum(r.boundary_seconds for r in results),
        "eval_seconds": learned.scoring_seconds,
        "seconds": time.perf_counter() - started,
        "steps": sum(r.steps for r in results),
        "peak_bytes": peak_bytes(),
        "leak": max((r.facts.get("leak") or 0.0 for r in results), default=0.0),
        "facts": dict(results[-1].facts),
        "environment": environment(),
    }


def load(cell: Cell) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the cell's model in float32, on the GPU if there is one, and its tokenizer."""
    model, tokenizer = load_model(ModelConfig(path=cell.model), "cuda" if torch.cuda.is_available() else "cpu")
    if cell.random_weights:
        torch.manual_seed(cell.seed)
        model = type(model)(model.config).to(model.device)  # pyright: ignore[reportArgumentType]
    return model, tokenizer


def environment() -> dict[str, Any]:
    """Return the environment of a measurement: device, threads, package versions."""
    packages = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "datasets")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": device, "threads": torch.get_num_threads(), "python": platform.python_version(), **packages}


def load_tasks(cell: Cell, data: Path) -> list[Task]:
    """Load the cell's tasks, limited to its sizes; the rows do not depend on the method or the training seed."""
    return [
        load_cl_benchmark(
            data,
            name,
            metric=cell.metric,
            task_name_in_prompt=False,
            seed=0,
            dev_rows=cell.dev_rows,
            limit_train=cell.train_rows,
            limit_eval=cell.eval_rows,
        )
        for name in cell.order
    ]


def peak_bytes() -> int:
    """Return the peak memory of the GPU if there is one, otherwise of the process, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
