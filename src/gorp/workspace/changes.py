"""Which settings may change between two runs of one workspace.

    nothing learned yet   everything except the weights of the base model
    between two tasks     `training`, `encoding`, `eval`, the rows of learned tasks, tasks not learned yet (but not
                          their number, if the method needs it), and options that are marked `BETWEEN_TASKS`
    within a task         only what does not influence the trained weights: `eval`, paths, how often to save and log
    always                `gate`

Scores need no rule: each is saved with its conditions, and measured again when these change.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from gorp.errors import ConfigError
from gorp.layers.lora import LoraSettings
from gorp.methods import METHODS
from gorp.ranges import may_change
from gorp.workspace.config import RunConfig, effective, num_tasks
from gorp.workspace.held import fits
from gorp.workspace.store import Version


FREE_TASK_FIELDS = ("train", "eval", "subset", "split", "dev_rows", "limit_train")
"""Fields of a learned task that may change: they locate and select its training rows, which are not read again."""

OBSERVING = ("logging_", "save_", "report_to", "disable_tqdm")
"""Prefixes of keys of `training:` that do not influence the trained weights."""


def course(config: RunConfig) -> dict[str, Any]:
    """Return the settings that influence the weights a task is trained to, by block."""
    values = effective(config)
    training = {key: value for key, value in values["training"].items() if not key.startswith(OBSERVING)}
    blocks = {name: values[name] for name in ("method", "lora", "encoding", "seed")}
    planned = {} if (count := num_tasks(config)) is None else {"num_tasks": count}
    return {**blocks, "training": training, "model": {"dtype": values["model"]["dtype"]}, **planned}


def check_settings(config: RunConfig, current: Version, held: Collection[str]) -> None:
    """Check that no setting was changed that must stay once a task is learned.

    Args:
        config: The configuration.
        current: The current version.
        held: The tasks that the gate ever held; see `held.fits`.

    Raises:
        ConfigError: If one was; the message names the first.
    """
    learned = current.contains
    if not learned:
        return
    old, new = dict(current.record["config"]), effective(config)
    names = [task["name"] for task in new["tasks"]]
    if not fits(names, learned, held):
        raise ConfigError(
            f"tasks: the workspace has learned {', '.join(learned)}, in this order, but the configuration begins with "
            f"{', '.join(names[: len(learned)])}. Add new tasks after the learned ones."
        )
    specs = {spec["name"]: spec for spec in old["tasks"]}
    for index, spec in enumerate(new["tasks"]):
        if spec["name"] in learned:
            before, now = (_without(each, FREE_TASK_FIELDS) for each in (specs[spec["name"]], spec))
            _compare(before, now, f"tasks[{index}]")
    _compare(old["method"]["name"], new["method"]["name"], "method.name")
    if num_tasks(config) not in (None, len(old["tasks"])):
        raise ConfigError(
            f"tasks: {len(names)} tasks are listed, but the method `{config.method}` was started with "
            f"{len(old['tasks'])}. List that many, or use a method that does not need the number of tasks "
            "(`gorp methods`)."
        )
    for block, options in free_options(config.method).items():
        before, now = (values[block] and _without(values[block], options) for values in (old, new))
        _compare(before, now, block, free=options)
    _compare(old["seed"], new["seed"], "seed")
    _compare(old["model"]["dtype"], new["model"]["dtype"], "model.dtype")


def free_options(method: str) -> dict[str, tuple[str, ...]]:
    """Return the options that may change between two tasks, for the blocks `method` and `lora`."""
    return {"method": may_change(METHODS[method].Config), "lora": may_change(LoraSettings)}


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each difference of two nested mappings: the path of the field, its old and its new value."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield where, old, new


def _compare(old: Any, new: Any, where: str, *, free: Sequence[str] = ()) -> None:
    for path, before, now in differences(old, new, where):
        options = ", ".join(f"`{where}.{name}`" for name in free)
        raise ConfigError(
            f"{path} is {now!r}, but the learned tasks of this workspace were trained with {before!r}. Set it to that "
            "value, or use another workspace. After the first task these may change: `training`, `encoding`, `eval`, "
            f"`gate`, tasks not learned yet{options and ', '}{options}."
        )


def _without(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}
