"""One cell of a comparison: a method, an order of tasks, a seed; its result is one JSON file."""

import hashlib
import json
import platform
import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gorp.adapters import LoraSettings
from gorp.data import Encoding, Task, load_cl_benchmark
from gorp.evaluation import AccuracyMatrix, EvalConfig, score_task, summary
from gorp.method import Method
from gorp.methods import METHODS
from gorp.models import ModelConfig, load_model
from gorp.training import train_task


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


def run_cell(cell: Cell, data: Path) -> dict[str, Any]:
    """Train the sequence and score it. The result holds the matrix, AP, BWT, FWT, forgetting, LA, costs and the leak.

    Args:
        cell: What to run.
        data: Root of the CL benchmark; not part of the cell, because it does not decide the numbers.
    """
    started = time.perf_counter()
    tasks = load_tasks(cell, data)
    model, tokenizer = load(cell)
    method = build_method(cell.method, cell.options, cell.lora)
    method.setup(model)
    matrix, results, evaluating = AccuracyMatrix([task.name for task in tasks]), [], 0.0
    encoding = Encoding(max_prompt_tokens=cell.max_prompt_tokens)

    def score(row: int, columns: list[int]) -> None:
        nonlocal evaluating
        begin = time.perf_counter()
        with method.serving(model) as served:
            for j in columns:
                config = EvalConfig(batch_size=64, max_new_tokens=16)
                result = score_task(served, tokenizer, tasks[j], split=cell.split, encoding=encoding, config=config)
                matrix.set(row, tasks[j].name, result.score, result.rows)
        evaluating += time.perf_counter() - begin

    last = len(tasks)
    if cell.cells == "needed":
        score(0, list(range(last)))
    stages = [(last, union(tasks, cell.seed))] if method.joint else [(i + 1, t.train) for i, t in enumerate(tasks)]
    for index, rows in stages:
        with tempfile.TemporaryDirectory() as folder:
            result = train_task(
                model,
                tokenizer,
                method,
                rows,
                name=tasks[index - 1].name,
                index=index,
                seed=cell.seed,
                training={"save_strategy": "no", **cell.training},
                encoding=encoding,
                folder=Path(folder),
            )
        results.append(result)
        score(index, cell.columns(index))
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
        "leak": max((r.facts.get("leak", 0.0) for r in results), default=0.0),
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
        model = type(model)(model.config).to(model.device)
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


def union(tasks: list[Task], seed: int) -> Dataset:
    """The training rows of all tasks, shuffled together."""
    return concatenate_datasets([task.train for task in tasks]).shuffle(seed=seed, keep_in_memory=True)


def peak_bytes() -> int:
    """Peak memory: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
