"""Select the layers to train: patterns, presets per architecture, and the table of trained weights."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import regex
from torch import nn

from gorp.errors import ModelError, nearest, shown
from gorp.layers.names import layer_name, weight_name
from gorp.layers.trainable import Obstacle, left_out, linear_layers


PRESETS: dict[str, dict[str, tuple[str, ...]]] = {
    "t5": {"lora": (r".*SelfAttention\.(q|v)",), "full": (r".*EncDecAttention\.(q|v)",)},
    "llama": {"lora": ("q_proj", "v_proj"), "full": ("gate_proj",)},
}
"""The paper's split between LoRA and cores (T5: self-attention and cross-attention; LLaMA: attention and the MLP's
gate). The paper does not say which of q, k, v, o it adapted; q and v are the defaults of the code that it extends."""

FAMILIES = {"t5": "t5", "mt5": "t5", "umt5": "t5"} | dict.fromkeys(
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "smollm3", "granite"), "llama"
)
"""`model_type` of a configuration -> the preset that fits its module names."""

PATIENCE = 1.0
"""Time limit in seconds for matching one pattern with one name. A microsecond is usual, but some patterns would take
years. Python's `re` has no time limit; `regex`, which transformers requires too, has one."""

NAMED = 2
"""Number of example names per kind of weight in a message."""

KEYS = {"lora": "lora.target_modules", "full": "method.full_modules"}
"""YAML key of the patterns of each role."""


def family_of(model: nn.Module) -> str:
    """Return the name of the preset for `model`, by the `model_type` of its configuration.

    Raises:
        ModelError: There is no preset; the user must then write patterns.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if model_type not in FAMILIES:
        raise ModelError(
            f"no target preset for model type `{model_type}`; presets exist for {', '.join(sorted(FAMILIES))}. "
            "Set `lora.target_modules` and `method.full_modules` to module names or to `all-linear`."
        )
    return FAMILIES[model_type]


def resolve(model: nn.Module, patterns: Sequence[str] | str, *, role: str) -> list[str]:
    """Return the names of the linear layers that match `patterns`, in the model's order.

    Args:
        model: The base model, without adapters.
        patterns: "auto" (the preset of the model's family), "all-linear" (every linear layer that can be trained,
            except the output head), "none", or patterns. A pattern is the end of a module name ("q_proj") or a regular
            expression for the whole name.
        role: "lora" or "full"; it selects the patterns of the preset.

    Raises:
        ModelError: A pattern matches no linear layer, or "all-linear" finds none.
    """
    linear = linear_layers(model)
    if isinstance(patterns, str):
        if patterns == "none":
            return []
        if patterns == "all-linear":
            return _all_linear(model, linear)
        patterns = PRESETS[family_of(model)][role] if patterns == "auto" else (patterns,)
    chosen: set[str] = set()
    for pattern in patterns:
        matches = [name for name in linear if _matches(pattern, name, KEYS[role])]
        if not matches:
            endings = sorted({name.rpartition(".")[2] for name in linear})
            known = f"Its linear layers end in {', '.join(endings)}." if endings else "It has no linear layers."
            raise ModelError(
                f"{KEYS[role]}: `{pattern}` matches no linear layer of this model.{nearest(pattern, endings)}"
                f"{_nonlinear_match(model, pattern, KEYS[role])} {known}"
            )
        chosen.update(matches)
    return [name for name in linear if name in chosen]  # in the model's order, each once


def left_out_line(model: nn.Module, *chosen: Sequence[str] | str) -> str | None:
    """Return a line on the weights that "all-linear" or "auto" leave out, with their share; None if there are none.

    Args:
        model: The base model, without adapters.
        chosen: The patterns of each of the method's roles. If the user wrote patterns, the result is None.
    """
    groups = left_out(model)
    word = next((item for item in ("all-linear", "auto") if item in chosen), None)
    if word is None or not groups:
        return None
    named = [f"{g.reason} {100 * g.share:.1f} % ({_listed(g.patterns, NAMED)})" for g in groups]
    share = 100 * sum(group.share for group in groups)
    return f"`{word}` leaves out {share:.1f} % of the weights, which are not trained: {', '.join(named)}"


def _listed(names: Sequence[str], count: int) -> str:
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(f"`{name}`" for name in names[:count]) + rest


def _all_linear(model: nn.Module, linear: Mapping[str, Obstacle | None]) -> list[str]:
    """Return every linear layer that can be trained, except the output head.

    Quantized layers are included, so that `check_trainable` refuses them instead of leaving them out silently.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    inner = {name: obstacle for name, obstacle in linear.items() if model.get_submodule(name) is not head}
    found = [name for name, obstacle in inner.items() if obstacle is None or obstacle.kind in ("quantized", "packed")]
    if not found:
        kinds = ", ".join(group.reason for group in left_out(model))
        raise ModelError(
            f"`all-linear` finds no layer: this model's layers are {kinds or 'none'}, which gorp does not train. "
            "Use the method `sequential_full`, which trains every weight, or another model."
        )
    return found


def _nonlinear_match(model: nn.Module, pattern: str, key: str) -> str:
    """Return a sentence on the first module or parameter that matches `pattern` without being a linear layer."""
    modules = [(n, type(m).__name__) for n, m in model.named_modules() if n and _matches(pattern, n, key)]
    parameters = [(n, "parameter") for n, _ in model.named_parameters() if _matches(pattern, n, key)]
    for name, kind in modules + parameters:
        return f" `{name}` is a {kind}, which gorp does not train."
    return ""


def _matches(pattern: str, name: str, key: str) -> bool:
    # An ending must begin at a component of the name: "proj" does not match "q_proj".
    if name == pattern or name.endswith("." + pattern):
        return True
    try:
        return regex.fullmatch(pattern, name, timeout=PATIENCE) is not None
    except regex.error as error:
        raise ModelError(f"{key}: the pattern `{shown(pattern)}` is not a regular expression: {error}.") from None
    except TimeoutError:
        raise ModelError(
            f"{key}: matching the pattern `{shown(pattern)}` with `{name}` takes too long. Write the pattern without "
            f"a repeated part inside a repeated part."
        ) from None


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """One line of the table of trained weights: a group of parameters that differ only in their layer number."""

    pattern: str
    """Name of the parameters, with layer numbers written as `*`."""
    count: int
    """Number of parameters in the group."""
    shape: tuple[int, ...]
    """Shape of the first of them."""
    treatment: str
    """"LoRA", "core" (U C Vᵀ) or "full"."""
    trainable: int
    """Number of trainable entries in the whole group."""


def treatments(model: nn.Module) -> list[Treatment]:
    """Return the trainable parameters of a prepared model, grouped over layers."""
    groups: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain, kind = _kind(name)
            groups.setdefault((re.sub(r"\.\d+\.", ".*.", plain), kind), []).append(tuple(parameter.shape))
    return [
        Treatment(
            pattern=pattern, count=len(shapes), shape=shapes[0], treatment=kind, trainable=sum(_size(s) for s in shapes)
        )
        for (pattern, kind), shapes in groups.items()
    ]


def weight_of(name: str) -> str:
    """Return the name of the base model's weight to which a parameter of a prepared model belongs."""
    name = name.replace(".inner", "").replace(".base_layer", "")
    owner, adapter, _ = name.partition(".lora_")
    if adapter:
        return weight_name(owner)
    return weight_name(name.removesuffix(".core")) if name.endswith(".core") else name


def untouched_line(names: Sequence[str], trained: int) -> str | None:
    """Return a line on trained parameters that never had a gradient; None if there are none.

    Args:
        names: Names of these parameters in the prepared model.
        trained: Number of trained weights.
    """
    weights = list(dict.fromkeys(weight_of(name) for name in names))
    groups = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in weights))
    if not weights:
        return None
    return (
        f"no gradient ever reached {len(weights)} of the {trained} trained weights, which have not changed: "
        f"{_listed(groups, 4)}. Either no row uses them, or the model's loss does not depend on them."
    )


def _kind(name: str) -> tuple[str, str]:
    """Return the label of a trainable parameter (layer and factor, or weight) and its treatment."""
    _, adapter, factor = name.partition(".lora_")
    if adapter:
        return f"{layer_name(weight_of(name))} {factor[0]}", "LoRA"
    if name.endswith(".core"):
        return layer_name(weight_of(name)) + " C", "core"
    return weight_of(name), "full"


def _size(shape: Iterable[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
