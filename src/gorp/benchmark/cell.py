"""One cell of a comparison: a method, an order of tasks, a seed; its result is one JSON file."""

import hashlib
import json
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gorp.adapters import LoraSettings
from gorp.data import Encoding, Task, load_cl_benchmark
from gorp.evaluation import AccuracyMatrix, EvalConfig, score_task, summary
from gorp.method import Method
from gorp.methods import METHODS
from gorp.models import ModelConfig, load_model
from gorp.training import TaskResult, train_task


@dataclass(frozen=True, kw_only=True)
class Cell:
    """All that decides the numbers of one run, and so its file name."""

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
    """Where it is scored: `dev` (cut from train) for every choice, `eval` (the test rows) for what is reported."""
    metric: Literal["exact_match", "label_ranking"] = "exact_match"
    cells: Literal["needed", "ends"] = "needed"
    """`needed`: all that the metrics use. `ends`: the diagonal and the last row, for trials."""
    max_prompt_tokens: int = 128
    random_weights: bool = False
    """Start from an untrained model of the same shape: what pretraining is worth."""
    seed: int = 0

    def key(self) -> str:
        """File name: method, seed and a digest of everything else."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.method}-seed{self.seed}-{digest}"

    def columns(self, row: int) -> list[int]:
        """Tasks to score after task `row`: all of them at the end, before it those learned so far, or the newest."""
        if row == len(self.order):
            return list(range(row))
        return list(range(row + 1)) if self.cells == "needed" else [row - 1]


class Trainable(Protocol):
    """What the loop must know of a task; the rest is for the functions that train and score it."""

    @property
    def name(self) -> str:
        """In the matrix, and in messages."""
        ...

    @property
    def train(self) -> Dataset | None:
        """Its training rows, in the form that the training function takes; a benchmark's tasks all have them."""
        ...


T = TypeVar("T", bound=Trainable)


def run_cell(cell: Cell, data: Path) -> dict[str, Any]:
    """Train the sequence and score it. The result holds the matrix, AP, BWT, FWT, forgetting, LA, costs and the leak.

    Args:
        cell: What to run.
        data: Root of the CL benchmark; not part of the cell, because it does not decide the numbers.
    """
    started = time.perf_counter()
    tasks = load_tasks(cell, data)
    model, tokenizer = load(cell)
    encoding = Encoding(max_prompt_tokens=cell.max_prompt_tokens)
    config = EvalConfig(batch_size=64, max_new_tokens=16)

    def train(method: Method, task: Task, rows: Dataset, **where: Any) -> TaskResult:
        return train_task(model, tokenizer, method, rows, encoding=encoding, **where)

    def score(served: nn.Module, task: Task) -> tuple[float, int]:
        result = score_task(served, tokenizer, task, split=cell.split, encoding=encoding, config=config)
        return result.score, result.rows

    return learn_in_turn(cell, model, tasks, train=train, score=score, started=started)


def learn_in_turn(
    cell: Cell,
    model: nn.Module,
    tasks: Sequence[T],
    *,
    train: Callable[..., TaskResult],
    score: Callable[[nn.Module, T], tuple[float, int]],
    started: float,
) -> dict[str, Any]:
    """Learn the tasks one after another with the cell's method, score after each, and put the result together.

    Args:
        cell: What is run.
        model: Untouched by any method.
        tasks: In the cell's order.
        train: Called with the method, the newest task, the rows, and `name`, `index`, `seed`, `training`, `folder` as
            `train_task` takes them.
        score: From the model as it serves and a task to percent right and rows.
        started: `time.perf_counter()` when the cell began, loading included.
    """
    method = build_method(cell.method, cell.options, cell.lora)
    method.setup(model)
    matrix, results, evaluating = AccuracyMatrix([task.name for task in tasks]), [], 0.0

    def fill(row: int, columns: Sequence[int]) -> None:
        nonlocal evaluating
        begin = time.perf_counter()
        with method.serving(model) as served:
            for j in columns:
                matrix.set(row, tasks[j].name, *score(served, tasks[j]))
        evaluating += time.perf_counter() - begin

    last = len(tasks)
    if cell.cells == "needed":
        fill(0, range(last))
    stages = [(last, union(tasks, cell.seed))] if method.joint else [(i + 1, t.train) for i, t in enumerate(tasks)]
    for index, rows in stages:
        task = tasks[index - 1]
        assert rows is not None
        training = {"save_strategy": "no", **cell.training}
        with tempfile.TemporaryDirectory() as folder:
            where = {"name": task.name, "index": index, "seed": cell.seed, "folder": Path(folder)}
            results.append(train(method, task, rows, training=training, **where))
        fill(index, cell.columns(index))
    return {
        "cell": asdict(cell),
        **summary(matrix),
        "matrix": matrix.to_dict(),
        "train_seconds": sum(r.seconds for r in results),
        "boundary_seconds": sum(r.boundary_seconds for r in results),
        "eval_seconds": evaluating,
        "seconds": time.perf_counter() - started,
        "steps": sum(r.steps for r in results),
        "peak_bytes": peak_bytes(),
        "leak": max((r.facts.get("leak") or 0.0 for r in results), default=0.0),
        "facts": dict(results[-1].facts),
        "environment": environment(),
    }


def build_method(name: str, options: Mapping[str, Any], lora: Mapping[str, Any]) -> Method:
    """A method by its name, with the fields of its configuration; `lora` is ignored by methods without adapters."""
    method_class = METHODS[name]
    config = method_class.Config(**options)
    return method_class(config, LoraSettings(**lora)) if method_class.uses_lora else method_class(config)  # pyright: ignore[reportCallIssue]


def load(cell: Cell) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The cell's model in float32, on the GPU where there is one, and its tokenizer."""
    model, tokenizer = load_model(ModelConfig(path=cell.model), "cuda" if torch.cuda.is_available() else "cpu")
    if cell.random_weights:
        torch.manual_seed(cell.seed)
        model = type(model)(model.config).to(model.device)  # pyright: ignore[reportArgumentType]
    return model, tokenizer


def environment() -> dict[str, Any]:
    """Where numbers come from: machine, threads, package versions."""
    packages = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "datasets")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": device, "threads": torch.get_num_threads(), "python": platform.python_version(), **packages}


def load_tasks(cell: Cell, data: Path) -> list[Task]:
    """The cell's tasks, cut to its sizes; the same rows whatever the method and the seed of the training."""
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


def union(tasks: Sequence[Trainable], seed: int) -> Dataset:
    """The training rows of all tasks, shuffled together."""
    rows = [rows for task in tasks if (rows := task.train) is not None]
    return concatenate_datasets(rows).shuffle(seed=seed, keep_in_memory=True)


def peak_bytes() -> int:
    """Peak memory: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
