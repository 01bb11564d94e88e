"""What an export needs of a version: its base model, its deltas, and the rows that it was scored on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gorp.data import Encoding, Task
from gorp.data.form import from_list
from gorp.errors import CheckpointError, ConfigError
from gorp.evaluation import EvalConfig
from gorp.models.files import base_digests
from gorp.models.load import SHIPPED, ModelConfig, load_model, locate
from gorp.progress import Progress
from gorp.storage import read_json, read_tensors
from gorp.weights.delta import WeightDelta, unpack_deltas
from gorp.workspace.evaluate import present_configuration
from gorp.workspace.learned import is_kept, kept_path
from gorp.workspace.prepare import device_for
from gorp.workspace.state import DELTA, file_sha256
from gorp.workspace.store import Version, Workspace


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base model of a version, found and identified by its digest, but not loaded."""

    name: str
    """Id on the hub, or the last part of the folder's path."""
    folder: Path
    """Local folder with its files."""
    config: ModelConfig
    """With the local folder as `path`."""
    device: str
    """Where to load it."""
    encoding: Encoding
    """Limits of prompts, as the tasks are scored."""
    evaluation: EvalConfig
    """Settings of scoring."""

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model and its tokenizer."""
        return load_model(self.config, self.device)


def base_model(
    version: Version,
    base: Path | None = None,
    *,
    source: Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Base:
    """Find the base model of a version and check its digests and those of the version's files.

    Args:
        version: Any version of a workspace.
        base: Folder of the model, if it is not where the configuration says.
        source: The YAML that the user named, if any.
        trust_remote_code: Whether Python code that comes with the model may run; see `present_configuration`.
        progress: Receives a line that names the configuration.

    Raises:
        ConfigError: If the version was made by something else than `gorp train`, or code would run unasked.
        ModelError: If the model cannot be found.
        CheckpointError: If the version is damaged, or the model is not the one that it was trained from.
    """
    if (made_by := version.record.get("made_by")) is not None:
        raise ConfigError(
            f"{version.folder}: was made by `{made_by}`, and this gorp exports only what `gorp train` made. Install a "
            "newer gorp."
        )
    store = Workspace(version.folder.parent.parent)
    config = present_configuration(store, progress or Progress(), source, trust_remote_code=trust_remote_code)
    model = config.model
    if base is not None:
        if not base.is_dir():
            raise ConfigError(f"--base {base}: there is no such folder. Give the folder of the base model.")
        model = replace(model, path=os.path.abspath(base), revision=None)
    folder = locate(model)
    digests = base_digests(folder, trust_remote_code=model.trust_remote_code)
    version.verify(digests["sha256"])
    version.check_base({"path": model.path, **digests})
    named = config.model.path
    return Base(
        name=Path(named).name if Path(named).is_dir() or os.path.isabs(named) or named == SHIPPED else named,
        folder=folder,
        config=replace(model, path=str(folder)),
        device=device_for(config),
        encoding=config.encoding,
        evaluation=config.eval,
    )


def deltas_of(version: Version) -> dict[str, WeightDelta]:
    """Return the deltas of a version that change something: name of a parameter -> delta; empty for v0.

    Raises:
        CheckpointError: If the file is damaged.
    """
    if DELTA not in version.record["sha256"]:
        return {}
    path = version.folder / DELTA
    if file_sha256(path) != version.record["sha256"][DELTA]:
        raise CheckpointError(f"{path}: damaged or changed: its SHA-256 differs from the one in version.json.")
    deltas = unpack_deltas(read_tensors(path)[0])
    return {name: delta for name, delta in deltas.items() if delta.norm() > 0}


def questions(version: Version, progress: Progress) -> list[Task]:
    """Return the learned tasks with the rows that they are scored on, as the workspace keeps them.

    A task whose rows are not kept (a workspace of gorp 0.1.0) or are damaged is left out, and that is reported.
    """
    store, tasks = Workspace(version.folder.parent.parent), []
    for name in version.contains:
        record: Mapping[str, Any] = version.record["tasks"].get(name, {})
        path = kept_path(store, name)
        kept = read_json(path) if path.is_file() else None
        if kept is None or not is_kept(kept, name) or record.get("metric") is None:
            if record.get("metric") is not None:
                progress.say(f"{name}: {path} is {'missing' if kept is None else 'damaged'}; the task is not asked")
            continue
        labels = None if record["labels"] is None else tuple(record["labels"])
        rows = from_list(kept["rows"])
        tasks.append(
            Task(
                name=name,
                train=None,
                dev=None,
                eval=rows,
                labels=labels,
                metric=record["metric"],
                source=kept["source"],
                notes=(),
            )
        )
    return tasks
