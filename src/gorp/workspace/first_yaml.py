"""Write the first YAML of a run, with a task for each file of rows and a comment for each key that one may change."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gorp.data import TaskSpec, check_names
from gorp.data.formats import detect_format
from gorp.data.source import open_source
from gorp.errors import ConfigError, nearest, shown
from gorp.models.load import SHIPPED
from gorp.storage import create_atomic, remove_leftovers_of
from gorp.workspace.add import written_path
from gorp.workspace.config import parse_config
from gorp.workspace.yaml_entry import flow_entry, quoted
from gorp.workspace.yaml_file import parse_yaml


HELD_OUT = re.compile(r"(.+)[_.-](test|eval|dev|valid|validation)", re.IGNORECASE)
"""Stem of a file with eval rows: that of the training file, and a word."""

TRAIN = re.compile(r"(.+)[_.-]train", re.IGNORECASE)
"""Stem of a training file that says so."""

FEW_ROWS = 1000
"""Below this many rows in a task's file, one epoch is too short to learn it."""

TEXT = """\
# Written by `gorp init`. `gorp validate {name}` checks it, `gorp train {name}` trains what is pending.
# docs/configuration.md has every key; a key that is not here has its default.

model:
  path: {model}  # a folder, a hub id, or gorp-tiny-t5
{own}
method:
  name: gorp  # `gorp methods` lists the others
{modules}
training:  # any field of transformers.TrainingArguments
  learning_rate: 1e-3  # change this first: lower if the loss is unsteady, higher if a task is not learned
  num_train_epochs: {epochs}  # passes over a task's rows: 1 for thousands of rows, 3 to 5 for hundreds
  per_device_train_batch_size: 8  # lower if memory runs out

encoding:  # in tokens; `gorp validate` shows how long the rows are
  max_prompt_tokens: 512  # a longer prompt loses its middle
  max_completion_tokens: {answer}  # a longer answer is an error

# gate: {{guard: general.txt}}  # text that no task trains on: shows whether the model gets worse at it
tasks:  # in the order of training; `gorp add NAME FILE` appends one
{tasks}"""


LARGER = "  dtype: auto  # of the frozen weights: as in the model's files, or float32 or bfloat16\n"
SMALL = "  full_modules: all-linear  # cores on every layer, which suits a model this small\n"
"""Lines for a model of one's own, and for the shipped one."""


@dataclass(frozen=True)
class _Pair:
    name: str
    train: str
    eval: str | None


def init_config(model: str, files: Sequence[str], path: Path, *, dry_run: bool = False) -> dict[str, Any]:
    """Write a YAML for a model and files of rows.

    Args:
        model: A folder, the name of the shipped model, or a hub id, which is not looked up.
        files: Files of rows. `x_test`, `x_eval`, `x_dev` or `x_valid` has the eval rows of `x` or `x_train`.
        path: The YAML; its paths are relative to its folder.
        dry_run: Write nothing.

    Returns:
        `config`, `written`, `text`, and `tasks`, each with `name`, `train`, `eval` and `format`.

    Raises:
        ConfigError: If the YAML exists, a name cannot be that of a task, or a file of eval rows has no training file.
        DataError: If a file cannot be read, or its first row has no known format.
    """
    if path.exists() or path.is_symlink():
        raise _exists(path)
    is_folder = model != SHIPPED and Path(model).is_dir()
    if not (is_folder or model == SHIPPED or "/" in model) and (meant := nearest(model, [SHIPPED])):
        raise ConfigError(f"{model}: no such folder, and not the shipped model.{meant}")
    if not is_folder and (model.startswith((".", "~", "/")) or model.count("/") > 1 or not model.strip()):
        raise ConfigError(
            f"{model or 'the model'}: no such folder, and no hub id either. Give the folder of a model, an id like "
            f"OWNER/NAME, or {SHIPPED}."
        )
    folder = path.resolve().parent
    pairs = _pairs(files)
    check_names([pair.name for pair in pairs])
    tasks = [_seen(pair) for pair in pairs]
    entries = [
        {"name": pair.name, "train": written_path(pair.train, folder)}
        | ({} if pair.eval is None else {"eval": written_path(pair.eval, folder)})
        for pair in pairs
    ]
    named = model if not is_folder else written_path(model, folder)
    text = TEXT.format(
        name=path.name,
        model=quoted(f"./{named}" if is_folder and not Path(named).is_absolute() else named),
        own=LARGER if model != SHIPPED else "",
        modules=SMALL if model == SHIPPED else "",
        epochs=4 if tasks and max(task["rows"] for task in tasks) < FEW_ROWS else 1,
        answer=256 if any(task["format"] in ("messages", "sharegpt", "alpaca") for task in tasks) else 50,
        tasks="".join(f"  - {flow_entry(entry)}\n" for entry in entries),
    )
    block = parse_yaml(text, path)
    if entries:
        parse_config(block, folder)
    if not dry_run:
        created = create_atomic(path, text.encode())
        remove_leftovers_of(path)  # there is a file now, so another `gorp init` that still writes only finds that
        if not created:
            raise _exists(path)
    return {"config": str(path), "written": not dry_run, "tasks": tasks, "text": text}


def _exists(path: Path) -> ConfigError:
    return ConfigError(f"{path}: exists, and is not overwritten. Use another name (--out), or `gorp add` to add tasks.")


def _pairs(files: Sequence[str]) -> list[_Pair]:
    """Return the tasks of files, in order; eval files belong to the training file of the same name."""
    trains: dict[str, str] = {}
    evals: dict[str, str] = {}
    for file in files:
        stem = Path(file).stem
        match = HELD_OUT.fullmatch(stem)
        into, name = (evals, match[1]) if match else (trains, found[1] if (found := TRAIN.fullmatch(stem)) else stem)
        if name in into:
            raise ConfigError(
                f"{into[name]} and {file}: both are {'eval rows' if match else 'rows'} of the task `{name}`. Give one, "
                "or rename one."
            )
        into[name] = file
    for name, file in evals.items():
        if name not in trains:
            raise ConfigError(
                f"{file}: by its name it has eval rows of `{name}`, but no file with the training rows of `{name}` was "
                "given. Give that file too, or rename this one."
            )
    named = {name: re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "task" for name in trains}
    return [_Pair(named[name], train, evals.get(name)) for name, train in trains.items()]


def _seen(pair: _Pair) -> dict[str, Any]:
    """Return a task with the format that its first row has, and its number of rows, counted up to `FEW_ROWS`."""
    spec = TaskSpec(name=pair.name, train=pair.train, eval=pair.eval)
    train = open_source("train", spec, split="train")
    format = detect_format(train.first)
    if pair.eval is not None and (other := detect_format(open_source("eval", spec, split="test").first)) != format:
        raise ConfigError(
            f"{shown(pair.eval)} has rows of the format {other}, but those of {shown(pair.train)} are {format}. Give "
            "both the same columns."
        )
    rows = sum(1 for _, _ in zip(range(FEW_ROWS), train.rows(bad=lambda error: None), strict=False))
    return {"name": pair.name, "train": pair.train, "eval": pair.eval, "format": format, "rows": rows}
