"""Read the YAML of a run, check every key, and return the effective configuration with all defaults filled in.

    model:    {path: gorp-tiny-t5}
    method:   {name: gorp, mode: strict}
    lora:     {r: 8, lora_alpha: 32}
    training: {learning_rate: 1e-3, num_train_epochs: 1}
    encoding: {max_prompt_tokens: 512}
    tasks:
      - {name: oct, train: data/oct.jsonl, eval: data/oct_test.jsonl}
      - {name: nov, train: data/nov.jsonl, eval: data/nov_test.jsonl}
    eval:     {batch_size: 32, limit: null}
    gate:     {margin: 2.0}
    seed: 0

`tasks` can also name a published order of the CL benchmark: `tasks: {order: order1, data: CL_Benchmark}`.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from transformers import TrainingArguments

from gorp.data import ORDERS, Encoding, TaskSpec, check_names
from gorp.data.files import names_a_file
from gorp.errors import ConfigError, nearest, shown
from gorp.evaluation import EvalConfig
from gorp.layers.lora import LoraSettings
from gorp.methods import METHODS, build_method
from gorp.methods.base import MethodConfig
from gorp.models.load import SHIPPED, ModelConfig
from gorp.training.settings import DEFAULTS, check_training_block
from gorp.workspace.blocks import check_keys, read_block, read_value, show
from gorp.workspace.gate_config import GateConfig, read_gate
from gorp.workspace.yaml_file import read_yaml


NOT_SHARED = ("name", "train", "eval", "format")
"""Fields of a task that a published order sets itself, so that `tasks:` cannot set them for all tasks."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a run is done with. Paths are absolute."""

    model: ModelConfig
    """The base model."""
    method: str
    """A name of `METHODS`."""
    options: MethodConfig
    """The method's own configuration: the other keys of the `method:` block."""
    lora: LoraSettings | None
    """None for methods without adapters."""
    training: Mapping[str, Any]
    """The `training:` block, with the names of `transformers.TrainingArguments`."""
    encoding: Encoding
    """Token limits of prompts and completions."""
    tasks: tuple[TaskSpec, ...]
    """In the order of training."""
    eval: EvalConfig
    """How tasks are scored."""
    gate: GateConfig
    """How a new version is judged; it influences neither weights nor scores."""
    seed: int
    """Seed of new adapters, the order of rows and dropout; not of the split into train, dev and eval rows."""
    source: Path | None = None
    """The YAML it was read from, if any; it does not influence the result."""


LONGEST_MESSAGE = 4000
"""Maximum length in characters of an error message about a YAML."""

BLOCKS = ("model", "method", "lora", "training", "encoding", "tasks", "eval", "gate", "seed")


def load_config(path: Path) -> RunConfig:
    """Read and check a YAML file; paths in it are relative to its folder.

    Raises:
        ConfigError: If the YAML is not a valid configuration; the message names the key.

    Example:
        >>> from pathlib import Path
        >>> from gorp import load_config
        >>> config = load_config(Path("bot.yaml"))
        >>> config.method, [task.name for task in config.tasks]
        ('gorp', ['october'])
    """
    path = Path(path)
    block = read_yaml(path)
    try:
        return replace(parse_config(block, path.resolve().parent), source=path.resolve())
    except ConfigError as error:
        raise ConfigError(shown(f"{path}: {error}", LONGEST_MESSAGE)) from error


def parse_config(block: Mapping[str, Any], folder: Path) -> RunConfig:
    """Check a configuration given as a mapping; paths in it are relative to `folder`.

    Raises:
        ConfigError: If it is not a valid configuration; the message names the key.
    """
    check_keys(block, list(BLOCKS), "")
    for key in ("model", "method", "tasks"):
        if key not in block:
            raise ConfigError(f"`{key}:` is missing. A run needs `model:`, `method:` and `tasks:`.")
    method, options, lora = _method(block["method"], block.get("lora"))
    tasks = _tasks(block["tasks"], folder)
    return RunConfig(
        model=_model(block["model"], folder),
        method=method,
        options=options,
        lora=lora,
        training=_training(_block(block, "training")),
        encoding=read_block(Encoding, _block(block, "encoding"), "encoding"),
        tasks=tasks,
        eval=read_block(EvalConfig, _block(block, "eval"), "eval"),
        gate=_gate(_block(block, "gate"), [task.name for task in tasks], folder),
        seed=_seed(block.get("seed", 0)),
    )


def num_tasks(config: RunConfig) -> int | None:
    """Return the number of tasks if the method needs it; otherwise None, because tasks may be added at any time."""
    return len(config.tasks) if METHODS[config.method].needs_num_tasks else None


def effective(config: RunConfig) -> dict[str, Any]:
    """Return everything that a run is done with as JSON values, with all defaults (also those of the mode)."""
    method = build_method(config.method, config.options, config.lora)
    lora: LoraSettings = getattr(method, "lora", LoraSettings())
    return {
        "model": asdict(config.model),
        "method": {"name": config.method, **_plain(asdict(method.config))},
        "lora": None if config.lora is None else _plain(asdict(lora) | {"target_modules": lora.targets}),
        "training": DEFAULTS | dict(config.training),
        "encoding": asdict(config.encoding),
        "tasks": [asdict(task) for task in config.tasks],
        "eval": asdict(config.eval),
        "gate": asdict(config.gate),
        "seed": config.seed,
    }


def _block(block: Mapping[str, Any], key: str) -> Any:
    """Return the value of `key`; a missing or null block is an empty mapping, but 0, false, "" and [] are errors."""
    return {} if block.get(key) is None else block[key]


def _path(text: str, folder: Path, where: str) -> Path:
    """Return `text` as a path relative to `folder`.

    Raises:
        ConfigError: If `text` is blank or not a valid path.
    """
    if not text.strip():
        raise ConfigError(f"{where} is empty; wanted a path or a hub id.")
    try:
        path = folder / Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, or "~" of an unknown user
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{where} is {show(text)}: {reason}. Wanted a path or a hub id.") from None
    if "\0" in text:
        raise ConfigError(f"{where} is {show(text)}: a path cannot contain a NUL character.")
    return path


def _model(block: Any, folder: Path) -> ModelConfig:
    model = read_block(ModelConfig, block, "model")
    path = _path(model.path, folder, "model.path")
    is_path = Path(model.path).is_absolute() or model.path.startswith((".", "~")) or path.is_dir()
    if model.path == SHIPPED or not is_path:
        return model
    if model.revision is not None:
        raise ConfigError(f"model.revision is for hub models, but model.path is the folder {path}. Remove it.")
    return replace(model, path=str(path.resolve()))


def _method(block: Any, lora: Any) -> tuple[str, MethodConfig, LoraSettings | None]:
    if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
        raise ConfigError(f"method is {show(block)}; wanted a mapping with `name:`, one of {', '.join(METHODS)}.")
    name = block["name"]
    if name not in METHODS:
        raise ConfigError(
            f"method.name: unknown method `{shown(name)}`; known are {', '.join(METHODS)}.{nearest(name, METHODS)}"
        )
    options = read_block(METHODS[name].Config, {k: v for k, v in block.items() if k != "name"}, "method")
    if METHODS[name].uses_lora:
        return name, options, read_block(LoraSettings, {} if lora is None else lora, "lora")
    if lora is not None:
        raise ConfigError(f"lora: the method `{name}` trains no adapters, so this block has no effect. Remove it.")
    return name, options, None


def _training(block: Any) -> dict[str, Any]:
    """Check names and types of the `training:` block: Hugging Face does not, and a wrong type fails hours later."""
    if not isinstance(block, Mapping):
        raise ConfigError(f"training is {show(block)}; wanted a mapping with fields of transformers.TrainingArguments.")
    check_training_block(block)
    hints, checked = get_type_hints(TrainingArguments), {}
    for key, value in block.items():
        read = read_value(hints[key], value, f"training.{key}") if _is_simple(hints[key]) else value
        checked[key] = read if isinstance(value, str) else value  # an int stays an int where the hint says float
    check_training_block(checked)  # again, because text may have become a number
    return checked


def _is_simple(hint: Any) -> bool:
    return hint in (int, float, bool, int | None, float | None, bool | None)


def _tasks(block: Any, folder: Path) -> tuple[TaskSpec, ...]:
    if isinstance(block, Mapping):
        specs = _published_order(block, folder)
    elif isinstance(block, list) and block:
        specs = tuple(_task(entry, folder, f"tasks[{index}]") for index, entry in enumerate(block))
    else:
        raise ConfigError("tasks: wanted a list with at least one task, each with `name:` and `train:`.")
    check_names([spec.name for spec in specs])
    return specs


def _task(entry: Any, folder: Path, where: str) -> TaskSpec:
    spec = read_block(TaskSpec, entry, where)
    train = _source(spec.train, folder, f"{where}.train")
    return replace(spec, train=train, eval=None if spec.eval is None else _source(spec.eval, folder, f"{where}.eval"))


def _gate(block: Any, tasks: list[str], folder: Path) -> GateConfig:
    gate = read_gate(block, tasks)
    if gate.guard is None:
        return gate
    return replace(gate, guard=os.path.abspath(_path(gate.guard, folder, "gate.guard")))


def _published_order(block: Mapping[str, Any], folder: Path) -> tuple[TaskSpec, ...]:
    shared = [field.name for field in fields(TaskSpec) if field.name not in NOT_SHARED]
    check_keys(block, ["order", "data", *shared], "tasks")
    for key in ("order", "data"):
        if not isinstance(block.get(key), str):
            raise ConfigError(f"tasks.{key} is {show(block.get(key))}; wanted text. Or write `tasks:` as a list.")
    if block["order"] not in ORDERS:
        raise ConfigError(
            f"tasks.order: unknown order `{shown(block['order'])}`; known are {', '.join(ORDERS)}."
            f"{nearest(block['order'], ORDERS)}"
        )
    rest = {key: value for key, value in block.items() if key not in ("order", "data")}
    entry = {"train": block["data"], "format": "cl_benchmark", **rest}
    return tuple(_task({"name": name, **entry}, folder, "tasks") for name in ORDERS[block["order"]])


def _source(text: str, folder: Path, where: str) -> str:
    """Return an absolute path (links are not resolved), or the id of a hub data set unchanged."""
    path = _path(text, folder, where)
    is_path = path.exists() or names_a_file(text) or text.startswith((".", "/", "~"))
    return os.path.abspath(path) if is_path else text


def _seed(value: Any) -> int:
    seed = read_value(int, value, "seed")
    if not 0 <= seed < 2_000_000:
        raise ConfigError(f"seed is {seed}; wanted 0 to 1999999, because each task derives its own seed from it.")
    return seed


def _plain(value: Any) -> Any:
    """Convert tuples to lists, so that the value equals what is read back from JSON."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
