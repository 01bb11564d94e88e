"""Which weights get which treatment: module patterns, presets per architecture, and the table printed at the start."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from gorp.errors import ModelError, nearest


PRESETS: dict[str, dict[str, tuple[str, ...]]] = {
    "t5": {"lora": (r".*SelfAttention\.(q|v)",), "full": (r".*EncDecAttention\.(q|v)",)},
    "llama": {"lora": ("q_proj", "v_proj"), "full": ("gate_proj",)},
}
"""The paper's split (T5: self-attention and cross-attention; LLaMA: attention and the MLP's gate).
Which of q, k, v, o it adapted is not stated; q and v are the defaults of the code it grew from."""

FAMILIES = {"t5": "t5", "mt5": "t5", "umt5": "t5"} | dict.fromkeys(
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "smollm3", "granite"), "llama"
)
"""`model_type` of a configuration -> the preset that fits its module names."""


KEYS = {"lora": "lora.target_modules", "full": "method.full_modules"}
"""Where the YAML of a run has the patterns of a role."""


def family_of(model: nn.Module) -> str:
    """The preset for `model`, by the `model_type` of its configuration.

    Raises:
        ModelError: If no preset fits; patterns must then be written out.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if model_type not in FAMILIES:
        raise ModelError(
            f"no target preset for model type `{model_type}`; presets exist for {', '.join(sorted(FAMILIES))}. "
            "Name the modules yourself: `lora.target_modules` and `method.full_modules`, or `all-linear`."
        )
    return FAMILIES[model_type]


def resolve(model: nn.Module, patterns: Sequence[str] | str, *, role: str) -> list[str]:
    """The linear layers that `patterns` name, in the model's order.

    Args:
        model: The base model, without adapters.
        patterns: "auto" (the preset of the model's family), "all-linear" (every linear layer but the output head),
            "none", or patterns: the end of a module name ("q_proj"), or a regular expression for the whole of it.
        role: "lora" or "full": which preset "auto" means.

    Raises:
        ModelError: If a pattern matches no linear layer.
    """
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if isinstance(patterns, str):
        if patterns == "none":
            return []
        if patterns == "all-linear":
            head = getattr(model, "get_output_embeddings", lambda: None)()
            return [name for name in linear if model.get_submodule(name) is not head]
        patterns = PRESETS[family_of(model)][role] if patterns == "auto" else (patterns,)
    chosen: set[str] = set()
    for pattern in patterns:
        matches = [name for name in linear if _matches(pattern, name, KEYS[role])]
        if not matches:
            endings = sorted({name.rpartition(".")[2] for name in linear})
            raise ModelError(
                f"{KEYS[role]}: `{pattern}` matches no linear layer of this model.{nearest(pattern, endings)} "
                f"Its linear layers end in {', '.join(endings)}."
            )
        chosen.update(matches)
    return [name for name in linear if name in chosen]


def _matches(pattern: str, name: str, key: str) -> bool:
    if name == pattern or name.endswith("." + pattern):
        return True
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ModelError(f"{key}: the pattern `{pattern}` is no regular expression: {error}.") from None


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """One line of the table: a group of weights that differ only in their layer number."""

    pattern: str
    """Name of the weights, layer numbers written as `*`."""
    count: int
    shape: tuple[int, ...]
    """Shape of one of them."""
    treatment: str
    """"LoRA", "core" (U C Vᵀ) or "full"."""
    trainable: int
    """Trainable numbers in the whole group."""


def treatments(model: nn.Module) -> list[Treatment]:
    """What is trainable in a prepared model, grouped over layers."""
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


def _kind(name: str) -> tuple[str, str]:
    """The weight a trainable parameter belongs to, and its role."""
    name = name.replace(".inner", "").replace(".base_layer", "")
    if ".lora_" in name:
        owner, _, factor = name.partition(".lora_")
        return f"{owner} {factor[0]}", "LoRA"
    if name.endswith(".core"):
        return name.removesuffix(".core") + " C", "core"
    return name, "full"


def _size(shape: Iterable[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
