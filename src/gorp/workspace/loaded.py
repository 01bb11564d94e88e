"""What an export needs of a version: its base model, its deltas, and the rows that it was scored on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gorp.data import Encoding, Task
from gorp.data.form import from_list
from gorp.errors import CheckpointError, ConfigError
from gorp.evaluation import EvalConfig
from gorp.models.files import base_digests
from gorp.models.load import SHIPPED, ModelConfig, load_model, locate, skeleton
from gorp.progress import Progress
from gorp.storage import read_json, read_tensors
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta, unpack_deltas
from gorp.workspace.evaluate import present_configuration
from gorp.workspace.learned import is_kept, kept_path
from gorp.workspace.prepare import device_for
from gorp.workspace.state import DELTA
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
    parameters_sha256: str | None = None
    """Digest of its parameters, if it is not known by the digest of its files: `load` compares it."""

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model and its tokenizer.

        Raises:
            CheckpointError: If its parameters are not those that the version was trained from.
        """
        model, tokenizer = load_model(self.config, self.device)
        if self.parameters_sha256 not in (None, BaseWeights(model).sha256()):
            raise CheckpointError(
                f"{self.folder}: its weights are not those that the version was trained from. Give the folder of the "
                "original base model with --base; a merged model of an earlier task is not it."
            )
        return model, tokenizer


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
        ConfigError: If code would run unasked, nothing says where the model is, or a later gorp made the version.
        ModelError: If the model cannot be found.
        CheckpointError: If the version is damaged, or the model is not the one that it was trained from.
    """
    if version.is_protection:
        return _base_of_protection(version, base, trust_remote_code=trust_remote_code)
    if (made_by := version.record.get("made_by")) is not None:
        raise ConfigError(
            f"{version.folder}: was made by `{made_by}`, and this gorp knows only what `gorp train` and "
            "gorp.Protection make. Install a newer gorp."
        )
    store = Workspace(version.folder.parent.parent)
    config = present_configuration(store, progress or Progress(), source, trust_remote_code=trust_remote_code)
    model = config.model
    if base is not None:
        _check_folder(base)
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


def _check_folder(base: Path) -> None:
    if not base.is_dir():
        raise ConfigError(f"--base {base}: there is no such folder. Give the folder of the base model.")


def _base_of_protection(version: Version, base: Path | None, *, trust_remote_code: bool) -> Base:
    """Find the base model of a version that `gorp.Protection` wrote: the record names it, and no YAML does.

    Its weights are compared when it is loaded, because only the digest of its parameters was recorded.
    """
    root, known = version.folder.parent.parent, version.record["base"]
    if base is not None:
        _check_folder(base)
        path = os.path.abspath(base)
    elif not known["path"]:
        raise ConfigError(
            f"{root}: the base model was made in memory, so nothing says where it is. Save it with its tokenizer "
            "(`save_pretrained`) and give the folder with --base."
        )
    else:  # relative to the protection folder if it begins with a dot
        path = os.path.abspath(root / known["path"]) if known["path"].startswith(".") else known["path"]
        if os.path.isabs(path) and not os.path.isdir(path):
            raise ConfigError(f"{path}: the base model is no longer there. Give its folder with --base.")
    if known.get("dtype") not in ("float32", "bfloat16"):
        raise ConfigError(
            f"{root}: its tasks were trained in {known.get('dtype')}; only float32 and bfloat16 can be read."
        )
    model = ModelConfig(path=path, dtype=known["dtype"], trust_remote_code=trust_remote_code)
    folder = locate(model)
    found = type(skeleton(replace(model, path=str(folder)))).__name__
    if found != known["architecture"]:
        raise CheckpointError(
            f"{folder}: its config.json makes a {found}, but the tasks were trained on a {known['architecture']}. Give "
            "the folder of that model with --base."
        )
    version.verify(known["sha256"])
    return Base(
        name=Path(path).name if os.path.isabs(path) or path == SHIPPED else path,
        folder=folder,
        config=replace(model, path=str(folder)),
        device="cuda" if torch.cuda.is_available() else "cpu",
        encoding=Encoding(),
        evaluation=EvalConfig(),
        parameters_sha256=known["sha256"],
    )


def deltas_of(version: Version) -> dict[str, WeightDelta]:
    """Return the deltas of a version that change something: name of a parameter -> delta; empty for v0.

    Raises:
        CheckpointError: If the file is damaged.
    """
    if DELTA not in version.record["sha256"]:
        return {}
    version.check_files(DELTA)
    deltas = unpack_deltas(read_tensors(version.folder / DELTA)[0])
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
