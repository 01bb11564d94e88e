"""Versions of a protection folder: the same store as a workspace's, without rows, scores and a YAML.

    protected/versions/v1/{delta,memory,method}.safetensors, version.json, protected/CURRENT, protected/ledger.jsonl

v0 is the base model, recorded with the first task. `gorp status` and `gorp export` read such a folder like a workspace.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from torch import nn

import gorp
from gorp.attach.pairs import settings_record
from gorp.errors import CheckpointError, ConfigError, nearest
from gorp.layers.lora import LoraSettings
from gorp.methods.base import Method
from gorp.permissions import make_folder
from gorp.ranges import may_change
from gorp.workspace.accepted import portable_path
from gorp.workspace.leaks import earlier_leaks
from gorp.workspace.mark import check_place
from gorp.workspace.record import PACKAGES
from gorp.workspace.state import write_state
from gorp.workspace.status import PROMISE
from gorp.workspace.store import Workspace
from gorp.workspace.version import PROTECTION, TASK_NAME, Version


@dataclass(frozen=True)
class Base:
    """The base model of a protection folder."""

    path: str
    """Name of the model on the hub, or its folder, as the model itself knows it; "" if it does not."""
    sha256: str
    """Digest over all its parameters (`BaseWeights.sha256`)."""
    dtype: str
    architecture: str
    """Name of the model's class."""

    @classmethod
    def of(cls, model: nn.Module, sha256: str) -> "Base":
        """Describe a model."""
        config: Any = getattr(model, "config", None)
        path = str(getattr(config, "_name_or_path", "") or "")
        dtype = str(getattr(model, "dtype", next(model.parameters()).dtype)).removeprefix("torch.")
        return cls(path=path, sha256=sha256, dtype=dtype, architecture=type(model).__name__)

    def record(self) -> dict[str, Any]:
        """Return the entry `base` of a version.json."""
        return {**asdict(self), "digest_of": "parameters"}


class ProtectionFolder:
    """The folder of a `Protection`.

    Args:
        root: The folder; it need not exist.

    Raises:
        ConfigError: If the folder holds other files, or is a workspace with a YAML, which `gorp train` updates.
        CheckpointError: If it is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.store = Workspace(root)
        try:
            check_place(root)
        except ConfigError as error:  # the option is of the command line
            raise ConfigError(str(error).replace(" with --workspace", "")) from None
        self.lineage: list[Version] = self.store.lineage() if self.store.exists() else []
        """The versions from v0 to CURRENT; empty before the first task."""
        if self.lineage and not self.lineage[-1].is_protection:
            raise ConfigError(
                f"{root}: a workspace of `gorp train`, not a protection folder. Train its next task with `gorp train`, "
                "or give Protection another folder."
            )

    @property
    def current(self) -> Version | None:
        """The version that the next task starts from; None before the first task."""
        return self.lineage[-1] if self.lineage else None

    @property
    def learned(self) -> list[str]:
        """Names of the learned tasks, in order."""
        return self.lineage[-1].contains if self.lineage else []

    @property
    def lora(self) -> LoraSettings | None:
        """Settings of the pairs of the last learned task; None before the first task, or if the method has no pairs."""
        found = self.current.record["config"]["lora"] if self.current is not None and self.learned else None
        if found is None:
            return None
        return LoraSettings(**_tuples(found))

    def check_name(self, task: str) -> None:
        """Raise if a task cannot have this name.

        Raises:
            ConfigError: If it is no safe file name, or the folder has learned a task of this name.
        """
        if not TASK_NAME.fullmatch(task):
            raise ConfigError(f"task is {task!r}; wanted a name of letters, digits, `.`, `_` and `-`.")
        if task in self.learned:
            raise ConfigError(
                f"{self.store.root}: has learned a task `{task}` already ({', '.join(self.learned)}). Give the next "
                "task another name."
            )

    def options(self, method: type[Method], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a method: `given`, and for the others those that the learned tasks had.

        Raises:
            ConfigError: If the method has no such option, the folder was begun with another method, or an option that
                must stay was changed.
        """
        known = [item.name for item in fields(method.Config)]
        for key in given:
            if key not in known:
                raise ConfigError(
                    f"`{key}` is not an option of the method `{method.name}`; there are {', '.join(known) or 'none'}."
                    f"{nearest(key, known)}"
                )
        if self.current is None or not self.learned:
            return _tuples(given)
        before = dict(self.current.record["config"]["method"])
        if (name := before.pop("name")) != method.name:
            raise ConfigError(
                f"method is `{method.name}`, but the tasks of {self.store.root} were learned with `{name}`. Use that "
                "method, or another folder."
            )
        for key, value in given.items():
            value = list(value) if isinstance(value, tuple) else value
            if key not in may_change(method.Config) and value != before.get(key):
                raise ConfigError(
                    f"{key} is {value!r}, but the tasks of {self.store.root} were learned with {before.get(key)!r}. "
                    f"Set it to that, or use another folder. These may change: {', '.join(may_change(method.Config))}."
                )
        return _tuples({**before, **given})

    def check_base(self, base: Base) -> None:
        """Raise if the model that is to be trained is not the one that the folder was begun with.

        Raises:
            CheckpointError: The message says what to load.
        """
        if self.current is None:
            return
        known = self.current.record["base"]
        if known["sha256"] == base.sha256:
            return
        if known.get("dtype") != base.dtype:
            why = f"it is loaded in {base.dtype}, and was in {known.get('dtype')}. Load it in that dtype"
        else:
            why = (
                f"its weights differ from those of {known['path'] or 'the first task'}. If this is a merged model of "
                "an earlier task, load the base model instead: Protection itself adds what the learned tasks changed"
            )
        raise CheckpointError(
            f"the model is not the base model of {self.store.root}: {why}; or use another folder for another model."
        )

    def check_layers(self, layers: Sequence[str] | None) -> None:
        """Raise if a task would train layers that the learned tasks did not.

        Nothing is protected there: what the learned tasks feed into these layers was never read.

        Raises:
            ConfigError: The message names some of them.
        """
        if self.current is None or not self.learned:
            return
        before: list[str] = self.current.record.get("layers") or []
        new = [name for name in layers or () if before and name not in before]
        if new:
            raise ConfigError(
                f"this task would train {len(new)} layers that the learned tasks did not ({', '.join(new[:3])}…): what "
                "those tasks need of them is not known, so it could not be protected. Choose layers among the "
                f"{len(before)} that were trained (`target_modules`, `full_modules`)."
            )

    def save(
        self,
        method: Method,
        *,
        task: str,
        base: Base,
        lora: LoraSettings | None,
        layers: Sequence[str] | None,
        seed: int,
        training: Mapping[str, Any],
        scores: Mapping[str, float],
    ) -> Version:
        """Write the state of the method as a new version, atomically, and make it CURRENT.

        Args:
            method: The method after the task.
            task: Name of the task.
            base: The base model.
            lora: Settings of the LoRA pairs, if the method has any.
            layers: The layers that the task could change; None for all.
            seed: Seed of the sequence.
            training: Steps, seconds and rows of the task.
            scores: What the user's evaluation function returned.

        Raises:
            CheckpointError: If another process has saved a version since the task began, or the disk cannot be written.
        """
        known = self.current and self.current.sha256
        with self.store.writing():
            now = self.store.current() if self.store.exists() else None
            if (now and now.sha256) != known:
                raise CheckpointError(
                    f"{self.store.root}: has a new version, {now.name if now else 'none'}, since this task began. It "
                    "was trained without what that version protects, so it cannot be saved after it. Train the task "
                    "again."
                )
            if not self.lineage:
                self.lineage = [self.store.publish("v0", self._record(base, parent=None, task=None, contains=[]))]
            name = self.store.next_name()
            folder = self.store.prepared(name)
            make_folder(folder)
            write_state(folder, method, base.sha256)
            facts = method.facts()
            record = self._record(base, parent=self.lineage[-1].name, task=task, contains=[*self.learned, task])
            record |= {
                "config": _config(method, lora, [*self.learned, task], seed, record["base"]),
                "layers": None if layers is None else list(layers),
                "metrics": {"scores": dict(scores), "measures": {}},
                **{key: facts.get(key) for key in PROMISE},
                "leak_earlier": earlier_leaks(self.lineage, folder),
                "warnings": facts.get("warnings", []),
                "weights": facts.get("weights", {}),
                "footprint_bytes": facts.get("footprint_bytes", 0),
                "seed": seed,
                **training,
            }
            version = self.store.publish(name, record)
        self.lineage.append(version)
        return version

    def _portable(self, path: str) -> str:
        """Return the path of a local model relative to this folder, so that both may move; a hub id as it is."""
        return portable_path(os.path.realpath(path), self.store.root) if path and os.path.isdir(path) else path

    def _record(self, base: Base, *, parent: str | None, task: str | None, contains: list[str]) -> dict[str, Any]:
        tasks = {name: {"notes": []} for name in contains}
        return {
            "made_by": PROTECTION,
            "parent": parent,
            "task": task,
            "contains": contains,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "base": base.record() | {"path": self._portable(base.path)},
            "config": {"method": {"name": None}, "lora": None, "tasks": [{"name": name} for name in contains]},
            "tasks": tasks,
            "metrics": {"scores": {}, "measures": {}},
            "footprint_bytes": 0,
            "packages": {"gorp": gorp.__version__, **{name: package_version(name) for name in PACKAGES}},
        }


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with tuples in the place of lists, which JSON has made of them."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def _config(
    method: Method, lora: LoraSettings | None, tasks: list[str], seed: int, base: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the entry `config` of a version.json, with the blocks of a workspace's that apply."""
    pairs = None if lora is None else settings_record(lora)
    return {
        "model": {"path": base["path"], "dtype": base["dtype"]},
        "method": {"name": method.name, **asdict(method.config)},
        "lora": pairs,
        "training": {},
        "tasks": [{"name": name} for name in tasks],
        "seed": seed,
    }
