"""What may change between two runs of one workspace.

    nothing learned yet   everything but the weights of the base model
    between two tasks     `training`, `encoding`, `eval`, the rows of learned tasks, tasks not learned yet (but not how
                          many, where the method plans for that), and options that are marked `BETWEEN_TASKS`
    within a task         only what does not decide its course: `eval`, paths, how often it is saved and logged

Scores need no rule: each is kept with what it was measured on, and measured again when that changes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gorp.errors import ConfigError
from gorp.layers.lora import LoraSettings
from gorp.methods import METHODS
from gorp.ranges import may_change
from gorp.workspace.config import RunConfig, effective, num_tasks
from gorp.workspace.store import Version


FREE_TASK_FIELDS = ("train", "eval", "subset", "split", "dev_rows", "limit_train")
"""Of a learned task: where its rows are, and what chose those that it was trained on. They are not read again."""

OBSERVING = ("logging_", "save_", "report_to", "disable_tqdm")
"""Beginnings of keys of `training:` that do not decide a number."""


def course(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the course of a task's training, by block."""
    values = effective(config)
    training = {key: value for key, value in values["training"].items() if not key.startswith(OBSERVING)}
    blocks = {name: values[name] for name in ("method", "lora", "encoding", "seed")}
    planned = {} if (count := num_tasks(config)) is None else {"num_tasks": count}
    return {**blocks, "training": training, "model": {"dtype": values["model"]["dtype"]}, **planned}


def check_settings(config: RunConfig, current: Version) -> None:
    """Refuse settings that the tasks learned so far do not allow to change; before the first, everything may.

    Raises:
        ConfigError: It names the first field that differs.
    """
    learned = current.contains
    if not learned:
        return
    old, new = dict(current.record["config"]), effective(config)
    names = [task["name"] for task in new["tasks"]]
    if names[: len(learned)] != learned:
        raise ConfigError(
            f"tasks: the workspace has learned {', '.join(learned)}, in this order, and the configuration begins with "
            f"{', '.join(names[: len(learned)])}. New tasks go behind the learned ones."
        )
    specs = {spec["name"]: spec for spec in old["tasks"]}
    for index, name in enumerate(learned):
        before, now = (_without(spec, FREE_TASK_FIELDS) for spec in (specs[name], new["tasks"][index]))
        _compare(before, now, f"tasks[{index}]")
    _compare(old["method"]["name"], new["method"]["name"], "method.name")
    if num_tasks(config) not in (None, len(old["tasks"])):
        raise ConfigError(
            f"tasks: {len(names)} are listed, and the method `{config.method}` has planned for {len(old['tasks'])}. "
            "List as many, or use a method that does not need to know how many will come (`gorp methods`)."
        )
    for block, options in free_options(config.method).items():
        before, now = (values[block] and _without(values[block], options) for values in (old, new))
        _compare(before, now, block, free=options)
    _compare(old["seed"], new["seed"], "seed")
    _compare(old["model"]["dtype"], new["model"]["dtype"], "model.dtype")


def free_options(method: str) -> dict[str, tuple[str, ...]]:
    """The options that may change between two tasks, by block: those of the method's `Config`, and of its adapters."""
    return {"method": may_change(METHODS[method].Config), "lora": may_change(LoraSettings)}


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two nested mappings differ: the path of each field, what it was, what it is."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield where, old, new


def _compare(old: Any, new: Any, where: str, *, free: Sequence[str] = ()) -> None:
    for path, before, now in differences(old, new, where):
        options = ", ".join(f"`{where}.{name}`" for name in free)
        raise ConfigError(
            f"{path} is {now!r}, but this workspace was made with {before!r}, and what it has learned depends on that. "
            "Change it back, or use another workspace. What may change after the first task: `training`, `encoding`, "
            f"`eval`, tasks not learned yet{options and ', '}{options}."
        )


def _without(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}
