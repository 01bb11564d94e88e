"""Begin a protection folder with a task that was learned without gorp: by a PEFT adapter, or by ordinary fine-tuning.

    delta       from_adapter: s B A per layer, factored        from_finetuned: W_tuned - W₀ per parameter, dense
    S           from rows: as at the end of a task trained here (`gorp.layers.inputs`)
                without rows, adapter only: an orthonormal basis of the rows of A

Without rows ΔW S = 0 means ΔW Aᵀ = 0 for every later change ΔW. For an input x = P x + (x - P x), P = S Sᵀ:

    (W₀ + s B A + ΔW) x = W₀ x + s B A P x + ΔW (x - P x)

The adapter's own term s B A x stays as it was. For x in span(S) the whole output does. The task's real inputs lie
outside span(S) for the most part; for them the last term is new, and nothing bounds it.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gorp.attach.adapter import read_adapter
from gorp.attach.pairs import given_pairs
from gorp.attach.steps import ProtectedTask, rows_unknown
from gorp.core.distributed import rank
from gorp.errors import ConfigError
from gorp.layers.lora import LoraPair, LoraSettings
from gorp.layers.names import weight_name
from gorp.methods import METHODS
from gorp.methods.base import Directions, Method
from gorp.training.found import SavedModelState
from gorp.weights.delta import WeightDelta
from gorp.workspace.status import only_adapter
from gorp.workspace.version import Version


log = logging.getLogger(__name__)


def from_adapter(
    make: Callable[..., ProtectedTask],
    folder: Path,
    model: nn.Module,
    adapter: Path,
    *,
    rows: DataLoader[Any] | None,
    task: str,
    **settings: Any,
) -> Version:
    """Do the work of `Protection.from_adapter`, which documents the arguments; `make` is the class."""
    protection = make(folder, task=task, **settings)
    _check_new(protection, model)
    pairs = read_adapter(adapter, model)
    if rows is None:
        protection = make(folder, task=task, **_on_these_layers(pairs, settings))
    method = _prepare(protection, model)
    if rows is None and (others := [name for name in protection._layers or () if name not in pairs]):
        raise ConfigError(
            f"later tasks would train {len(others)} layers that the adapter has no pair on ({', '.join(others[:3])}…), "
            "and without rows nothing is known of what the task needs there. Give `rows`, or choose among the "
            f"adapter's {len(pairs)} layers (`lora=LoraSettings(target_modules=...)`, `full_modules`)."
        )
    changes = {weight_name(layer): pair.delta() for layer, pair in pairs.items()}
    directions = None
    if rows is None:
        chosen = set(protection._layers or ())
        found = {weight_name(layer): read_directions(pair) for layer, pair in pairs.items() if layer in chosen}
        directions = {name: both for name, both in found.items() if both[1].numel()}
        if rank() == 0:
            log.warning(only_adapter(task))
    return _adopt(protection, method, changes, directions, rows, begun_from="adapter")


def from_finetuned(
    make: Callable[..., ProtectedTask],
    folder: Path,
    base: nn.Module,
    tuned: nn.Module,
    *,
    rows: DataLoader[Any],
    task: str,
    **settings: Any,
) -> Version:
    """Do the work of `Protection.from_finetuned`, which documents the arguments; `make` is the class."""
    protection = make(folder, task=task, **settings)
    _check_new(protection, base)
    if rows is None:
        raise ConfigError(
            "rows is None: from the weights alone nothing is known of the inputs that the task needs, so nothing could "
            "be protected. Give a data loader over some of the task's training rows."
        )
    check_alike(base, tuned)
    method = _prepare(protection, base)
    changes = differences(base, tuned)
    return _adopt(protection, method, changes, None, rows, begun_from="finetuned")


def read_directions(pair: LoraPair) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis of the rows of A, n x p, and each direction's share of ‖s B A‖², strongest first.

    p is the rank of A; rows that are only rounding error give no direction. The basis is aligned with the right
    singular vectors of B A, so that at the budget the directions that matter least to the adapter are released first.
    """
    down, up = pair.down.detach().double(), pair.up.detach().double()
    _, sigma, rows = torch.linalg.svd(down, full_matrices=False)  # A = U Σ Vᵀ, r x n
    limit = max(down.shape) * torch.finfo(torch.float32).eps * sigma.max()
    basis = rows[sigma > limit].mT  # Q, n x p
    _, strengths, turn = torch.linalg.svd(up @ (down @ basis), full_matrices=True)  # B A Q: (m, r) @ ((r, n) @ (n, p))
    squares = torch.zeros(basis.shape[1], dtype=torch.float64)
    squares[: len(strengths)] = strengths.square()
    total = squares.sum()
    energies = squares / total if total > 0 else squares
    return (basis @ turn.mT).float(), energies.float()  # (n, p) @ (p, p)


def check_alike(base: nn.Module, tuned: nn.Module) -> None:
    """Raise if two models do not have the same parameters, or differ in a buffer, which no delta can hold.

    Raises:
        ConfigError: The message names the first parameter.
    """
    ours, theirs = dict(base.named_parameters()), dict(tuned.named_parameters())
    for name in sorted(ours.keys() ^ theirs.keys()):
        has, lacks = ("fine-tuned", "base") if name in theirs else ("base", "fine-tuned")
        raise ConfigError(
            f"`{name}` is a parameter of the {has} model, but not of the {lacks} model. Give two plain models of one "
            "architecture: merge an adapter first (`merge_and_unload`), and leave tied weights tied."
        )
    for name, parameter in ours.items():
        if parameter.shape != theirs[name].shape:
            raise ConfigError(
                f"`{name}` is {tuple(parameter.shape)} in the base model and {tuple(theirs[name].shape)} in the "
                "fine-tuned one. If the vocabulary has grown, resize the base model in the same way first, save it, "
                "and use it as the base model of all tasks."
            )
        if not theirs[name].is_floating_point():
            raise ConfigError(f"`{name}` is quantized in the fine-tuned model. Load it in floating point.")
        if not torch.isfinite(theirs[name]).all():
            raise ConfigError(f"`{name}` has values that are not finite in the fine-tuned model.")
    buffers, others = dict(base.named_buffers()), dict(tuned.named_buffers())
    for name in sorted(buffers.keys() & others.keys()):
        if not torch.equal(buffers[name].cpu(), others[name].to(buffers[name]).cpu()):
            raise ConfigError(f"the buffer `{name}` differs between the two models, and only parameters can be kept.")


def differences(base: nn.Module, tuned: nn.Module) -> dict[str, WeightDelta]:
    """Return W_tuned - W₀ of every parameter that differs, in float32 (float64 in a float64 model), in main memory.

    Raises:
        ConfigError: If no parameter differs.
    """
    theirs = dict(tuned.named_parameters())
    changes = {}
    for name, parameter in base.named_parameters():
        ours, other = parameter.detach().cpu(), theirs[name].detach().cpu()
        wide = torch.promote_types(torch.promote_types(ours.dtype, other.dtype), torch.float32)
        difference = other.to(wide) - ours.to(wide)
        if difference.any():
            changes[name] = WeightDelta.of(difference)
    if not changes:
        raise ConfigError(
            "the two models have the same weights, so there is no task to protect. Give the base model as it was "
            "before the training, and the model after it."
        )
    return changes


def _on_these_layers(pairs: Mapping[str, LoraPair], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the adapter's layers for what was not given: without rows, no others are protected."""
    method = METHODS[settings.get("method") or "gorp"]
    layers, filled = tuple(pairs), dict(settings)
    if method.uses_lora and filled.get("lora") is None:
        filled["lora"] = LoraSettings(target_modules=layers)
    if "full_modules" in {item.name for item in fields(method.Config)}:
        filled.setdefault("full_modules", "none" if method.uses_lora else layers)
    return filled


def _check_new(protection: ProtectedTask, model: nn.Module) -> None:
    """Raise if the folder has a task, or the model an adapter."""
    if protection.folder.learned:
        raise ConfigError(
            f"{protection.folder.store.root}: has learned {', '.join(protection.folder.learned)} already. A task that "
            "was learned elsewhere can only be the first one: it was trained without what these tasks protect. Give "
            "another folder."
        )
    if given_pairs(model) is not None:
        raise ConfigError("the model has an adapter; wanted the plain base model. Load it without the adapter.")


def _prepare(protection: ProtectedTask, model: nn.Module) -> Method:
    """Make the method, and check everything that can be checked before rows are read."""
    method = protection._build(model, model, None)
    method.check_adopt()
    protection._set_up()
    return method


def _adopt(
    protection: ProtectedTask,
    method: Method,
    changes: Mapping[str, WeightDelta],
    directions: Directions | None,
    rows: DataLoader[Any] | None,
    *,
    begun_from: str,
) -> Version:
    """Let the method take the task over, score it, save v1, and leave the model as the base model."""
    model = protection._base_model
    found = SavedModelState(model)
    try:
        batches = rows_unknown if rows is None else protection._batches_of(rows, model)
        model.requires_grad_(False)
        method.adopt(model, protection._context_of(0, batches), changes, directions)
        protection._score()
    finally:
        method.weights.load({})
        found.restore()
    source = "adapter" if directions is not None else "rows"
    protection._origin = {"steps": None, "begun_from": begun_from, "protected_from": source}
    protection.stage = "ended"
    return protection.save()
