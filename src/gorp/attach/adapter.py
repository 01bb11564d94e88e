"""Read a LoRA adapter that PEFT saved: adapter_config.json and adapter_model.safetensors.

    ΔW = s B A        s = alpha / r, with `use_rslora` alpha / √r; `alpha_pattern` and `rank_pattern` set both per layer

The tensors are read as they are; no layer of a model is wrapped.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gorp.attach.pairs import not_plain
from gorp.errors import CheckpointError, ConfigError, nearest
from gorp.layers.lora import LoraPair
from gorp.layers.trainable import linear_layers
from gorp.storage import read_json


CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
KEY = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
"""Name of a factor in an adapter's file."""

INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that leave the base weights as they are."""

OTHER_PARTS = {
    ".lora_embedding_": "a pair on an embedding, which is no linear layer",
    ".lora_magnitude_vector": "a magnitude of DoRA",
    ".lora_B.bias": "a trained bias",
}
"""Part of a tensor's name -> what the tensor is, if it is no factor A or B of a linear layer."""


def read_adapter(folder: Path, model: nn.Module) -> dict[str, LoraPair]:
    """Return the pair of each layer of an adapter.

    Args:
        folder: The adapter's folder.
        model: The base model.

    Returns:
        Name of a layer of the model -> its pair, in the dtype of the file, in main memory.

    Raises:
        ConfigError: If the adapter adds something else than s B A x to linear layers, or is not for this model.
        CheckpointError: If a file is missing or damaged.
    """
    options = _options(folder)
    unusual = not_plain(options, inits=INITS)
    if unusual is not None:
        key, value, wanted = unusual
        raise ConfigError(
            f"{folder}: `{key}` is {value!r} in {CONFIG}; wanted a plain LoRA adapter, where it is {wanted!r}, because "
            "only W + s B A can be added to a weight. Merge the adapter with PEFT (`merge_and_unload`) and use "
            "Protection.from_finetuned."
        )
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _tensors(folder).items():
        match = KEY.fullmatch(key)
        if match is None:
            what = next((what for part, what in OTHER_PARTS.items() if part in key), "no factor of a LoRA pair")
            raise ConfigError(
                f"{folder / WEIGHTS}: `{key}` is {what}; wanted lora_A and lora_B of linear layers only. Merge the "
                "adapter with PEFT (`merge_and_unload`) and use Protection.from_finetuned."
            )
        factors.setdefault(match[1], {})[match[2]] = tensor
    _check_layers(folder, model, list(factors))
    pairs = {layer: _pair(folder, layer, found, model, options) for layer, found in factors.items()}
    if not any(pair.up.any() for pair in pairs.values()):
        raise ConfigError(f"{folder}: B is zero in every layer: this adapter has learned nothing.")
    return pairs


def _options(folder: Path) -> dict[str, Any]:
    """Return the content of adapter_config.json."""
    path = folder / CONFIG
    if not path.is_file():
        inside = sorted(item.parent.name for item in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        advice = f" It has several: give one of {', '.join(inside)}." if inside else ""
        raise ConfigError(f"{folder}: not the folder of a PEFT adapter (no {CONFIG} in it).{advice}")
    options = read_json(path)
    if not isinstance(options, dict):
        raise CheckpointError(f"{path}: not the configuration of an adapter. Restore it from a copy.")
    if options.get("peft_type") == "LORA":
        known = {item.name for item in fields(LoraConfig)}
        new = [key for key, value in options.items() if key not in known and value not in (None, False, [], {}, "")]
        if new:
            raise ConfigError(
                f"{path}: has `{new[0]}`, which this version of PEFT does not know, so what the adapter computes is "
                "not known either. Install the version of PEFT that wrote it."
            )
    return options


def _tensors(folder: Path) -> Mapping[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / PICKLED).is_file()
        raise CheckpointError(
            f"{path}: no such file. "
            + (
                f"gorp does not read {PICKLED}, which may run code. Load the adapter with PEFT and save it again; "
                "save_pretrained writes safetensors."
                if pickled
                else "Restore it from a copy."
            )
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}). Restore it from a copy.") from None
    if not tensors:
        raise ConfigError(f"{path}: has no tensors.")
    return tensors


def _check_layers(folder: Path, model: nn.Module, layers: list[str]) -> None:
    """Raise if a layer of the adapter is no linear layer with a weight of its own in the model."""
    linear = linear_layers(model)
    names = {name for name, _ in model.named_modules()}
    for layer in layers:
        if layer not in linear:
            what = (
                f"it is a {type(model.get_submodule(layer)).__name__}" if layer in names else "there is no such layer"
            )
            raise ConfigError(
                f"{folder}: has a pair on `{layer}`, but in the model ({type(model).__name__}) {what}; wanted a linear "
                f"layer. Give the base model that the adapter was trained on.{nearest(layer, linear)}"
            )
        if (obstacle := linear[layer]) is not None:
            raise ConfigError(
                f"{folder}: has a pair on `{layer}`, to which nothing can be added by itself: {obstacle.text}. "
                "Merge the adapter with PEFT (`merge_and_unload`) and use Protection.from_finetuned."
            )


def _pair(
    folder: Path, layer: str, factors: Mapping[str, Tensor], model: nn.Module, options: Mapping[str, Any]
) -> LoraPair:
    """Return the pair of one layer, with its scale."""
    if set(factors) != {"A", "B"}:
        raise CheckpointError(
            f"{folder / WEIGHTS}: `{layer}` has only one of lora_A and lora_B. Restore it from a copy."
        )
    down, up = factors["A"], factors["B"]
    weight: Any = model.get_submodule(layer).weight
    (m, n), r = weight.shape, _of_layer(options.get("rank_pattern"), layer, options.get("r"))
    if down.shape != (r, n) or up.shape != (m, r):
        raise ConfigError(
            f"{folder}: `{layer}` has A {tuple(down.shape)} and B {tuple(up.shape)}; wanted A ({r}, {n}) and B ({m}, "
            f"{r}), for the model's weight {m} x {n} and the rank r = {r} of {CONFIG}. Give the base model that the "
            "adapter was trained on."
        )
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise ConfigError(f"{folder}: the pair on `{layer}` has values that are not finite. Train the adapter again.")
    alpha = _of_layer(options.get("alpha_pattern"), layer, options.get("lora_alpha"))
    scale = float(alpha) / (r**0.5 if options.get("use_rslora") else r)
    frozen = (nn.Parameter(factor, requires_grad=False) for factor in (down, up))
    return LoraPair(down=next(frozen), up=next(frozen), scale=scale)


def _of_layer(pattern: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """Return the value that a `rank_pattern` or `alpha_pattern` gives a layer, by PEFT's own rule."""
    found = pattern or {}
    return found.get(get_pattern_key(list(found), layer), default)
