"""Export a version: a merged model folder, or a LoRA adapter for it or for each version up to it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from transformers import PreTrainedModel

import gorp
from gorp.errors import ConfigError, nearest
from gorp.evaluation import AccuracyMatrix
from gorp.export import lowrank
from gorp.export.adapter import check_linear, check_matrices
from gorp.export.card import card
from gorp.export.folder import building, check_out, check_space, write_mark
from gorp.export.push import check_push, push
from gorp.methods import METHODS
from gorp.models.load import skeleton
from gorp.progress import Progress
from gorp.storage import write_atomic
from gorp.workspace.held import held_in_use
from gorp.workspace.loaded import Base, base_model, deltas_of, questions
from gorp.workspace.scores import Scores, learned_part
from gorp.workspace.store import Version, Workspace
from gorp.workspace.written import Adapter, Live, write_adapter_version, write_merged_version


Form = Literal["merged", "lora"]
DTYPES = ("float32", "bfloat16")


def export_version(
    version: Version,
    out: Path,
    *,
    to: str = "merged",
    dtype: str | None = None,
    rank: int | None = None,
    each: bool = False,
    base: Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
    source: Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a version as a folder that needs no gorp, check the folder, and give it its name.

    Args:
        version: The version.
        out: The folder; it must be new or empty, and outside the workspace and the base model's folder.
        to: "merged", a Hugging Face folder with round(W₀ + delta); or "lora", a PEFT adapter of the whole change.
        dtype: "float32" or "bfloat16". Default: that of the model for a merged folder, float32 for an adapter.
        rank: Rank of the adapter, one of `lowrank.RANKS`. Default: see `lowrank.choose_rank`.
        each: Write an adapter for each version from v1 to this one, `out`/v1, `out`/v2, ...
        base: Folder of the base model, if it was moved.
        force: Replace an earlier export.
        dry_run: Write nothing; return what would be written.
        push_to_hub: Upload the complete folder to this repository, OWNER/NAME.
        private: Make a new repository private.
        source: The YAML that the user named, if any.
        trust_remote_code: Whether Python code that comes with the model may run.
        progress: Receives the progress.

    Returns:
        The content of gorp-export.json, and `folder`; with `push_to_hub` also `commit`. In a dry run `bytes` in place
        of `files`.

    Raises:
        ConfigError: For impossible arguments, a folder that may not be written, or weights that an adapter cannot have.
        CheckpointError: If the version is damaged, the base model has changed, or the disk is full.
        ExportError: If the folder as read back is not equal to the version, or cannot be uploaded.
    """
    progress = progress or Progress()
    _check_arguments(to, dtype, rank, each=each, push_to_hub=push_to_hub, private=private)
    store = Workspace(version.folder.parent.parent)
    inputs = {"the workspace": store.root}
    check_out(out, force=force, sources=inputs)
    _check_method(version)
    lineage = store.lineage(version)
    deltas = {item.name: deltas_of(item) for item in (lineage if each else [version])}
    if to == "lora":
        for found in deltas.values():
            check_matrices(found)
    if push_to_hub is not None:
        check_push(push_to_hub)
    found = base_model(version, base, source=source, trust_remote_code=trust_remote_code, progress=progress)
    check_out(out, force=force, sources=inputs | {"the folder of the base model": found.folder})
    empty = skeleton(found.config)
    for item in lineage:
        item.verify(version.record["base"]["sha256"])
    default = "float32" if to == "lora" else str(empty.dtype).removeprefix("torch.")
    facts = _facts(version, found, to, dtype or default, held := held_in_use(store, version))
    for line in held:
        progress.say(line)
    facts["encoder_decoder"] = bool(empty.config.is_encoder_decoder)
    adapters: list[Adapter] = []
    for number, item in enumerate(lineage if to == "lora" else []):
        if deltas.get(item.name):
            check_linear(empty, deltas[item.name])
            asked: Any = {"rank": rank, "dtype": getattr(torch, facts["dtype"])}
            asked |= {"device": found.device, "progress": progress}
            adapters.append(Adapter.of(lineage[: number + 1], deltas[item.name], **asked))
    if to == "lora" and not adapters:
        raise ConfigError(f"{version.name}: training has changed no weight, so there is no adapter. Use --to merged.")
    preview = _preview(empty, adapters, facts["dtype"], each=each)
    if dry_run:
        return facts | preview | {"folder": str(out)}
    check_space(out, sum(item["bytes"] for item in preview.get("versions", {"": preview}).values()))
    tasks = questions(version, progress)
    with building(out, force=force) as folder:
        live = Live.load(found, tasks, progress)
        if to == "merged":
            chosen = None if dtype is None else getattr(torch, dtype)
            facts |= write_merged_version(folder, live, lineage, deltas[version.name], chosen)
        elif each:
            facts["versions"] = {}
            for adapter in adapters:
                (folder / adapter.name).mkdir()
                own = _facts(last := adapter.lineage[-1], found, to, facts["dtype"], held_in_use(store, last))
                own["encoder_decoder"] = facts["encoder_decoder"]
                measured = write_adapter_version(folder / adapter.name, live, adapter)
                _finish(folder / adapter.name, own | measured, _matrix(store, adapter.lineage))
                facts["versions"][adapter.name] = measured
        else:
            facts |= write_adapter_version(folder, live, adapters[-1])
        content = _finish(folder, facts, _matrix(store, lineage))
    content["folder"] = str(out)
    if push_to_hub is not None:
        progress.say(f"uploading to {push_to_hub}")
        content["commit"] = push(Path(os.path.abspath(out)), push_to_hub, private=private)
    return content


def _check_arguments(
    to: str, dtype: str | None, rank: int | None, *, each: bool, push_to_hub: str | None, private: bool
) -> None:
    """Raise ConfigError for arguments that are unknown or contradict each other."""
    for name, value, known in (("to", to, get_args(Form)), ("dtype", dtype, (*DTYPES, None))):
        if value not in known:
            words = [word for word in known if word]
            raise ConfigError(f"--{name} {value}: wanted {' or '.join(words)}.{nearest(str(value), words)}")
    if to == "merged" and (rank is not None or each):
        raise ConfigError(f"{'--rank' if rank is not None else '--each'} is for adapters. Add --to lora, or remove it.")
    if rank is not None:
        lowrank.check_rank(rank)
    if private and push_to_hub is None:
        raise ConfigError("--private is for --push-to-hub. Name a repository, or remove it.")


def _check_method(version: Version) -> None:
    """Raise ConfigError if the version's deltas are not all that its method learned."""
    name = version.record["config"].get("method", {}).get("name")
    method = METHODS.get(str(name))
    if method is not None and not method.mergeable:
        raise ConfigError(
            f"{version.name} was trained by `{name}`, which needs {'; '.join(method.requirements())}. "
            "Only methods with one model can be exported (`gorp methods` lists them)."
        )


def _facts(version: Version, base: Base, form: str, dtype: str, held: list[str]) -> dict[str, Any]:
    """Return what is known before anything is written, as JSON values."""
    keys = ("train_rows", "train_fingerprint", "eval_rows", "eval_fingerprint", "metric")
    tasks = {name: version.record["tasks"].get(name, {}) for name in version.contains}
    return {
        "gorp": gorp.__version__,
        "form": form,
        "version": version.name,
        "version_sha256": version.sha256,
        "held": held,
        "base": {"name": base.name, "revision": base.config.revision, "sha256": version.record["base"]["sha256"]},
        "dtype": dtype,
        "method": version.record["config"].get("method", {}),
        "tasks": {name: {key: task.get(key) for key in keys} for name, task in tasks.items()},
        "leak": version.record.get("leak"),
    }


def _preview(empty: PreTrainedModel, adapters: Sequence[Adapter], dtype: str, *, each: bool) -> dict[str, Any]:
    """Return the sizes, and the ranks of adapters."""
    if not adapters:
        count = sum(parameter.numel() for parameter in empty.parameters())
        return {"bytes": count * getattr(torch, dtype).itemsize}
    found = {item.name: {"rank": item.rank, "why": item.why, "bytes": item.size} for item in adapters}
    return {"versions": found} if each else found[adapters[-1].name]


def _matrix(store: Workspace, lineage: Sequence[Version]) -> AccuracyMatrix | None:
    """Return the scores of the learned tasks; None if there are none."""
    learned = lineage[-1].contains
    if not learned:
        return None
    matrix = learned_part(Scores(store.root / "eval").matrix(lineage, learned), len(learned))
    return None if matrix is None or np.isnan(matrix.R).all() else matrix


def _finish(folder: Path, facts: Mapping[str, Any], matrix: AccuracyMatrix | None) -> dict[str, Any]:
    """Write the card and the mark; return the content of the mark."""
    scores = None if matrix is None else matrix.to_dict()
    write_atomic(folder / "README.md", card(facts, matrix).encode())
    return write_mark(folder, {**facts, "scores": scores})
