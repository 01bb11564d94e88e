"""LoRA pairs that the user brings: the model was wrapped with a `peft.LoraConfig` before gorp saw it.

The method works on the base model, as everywhere: its layers are taken out of PEFT's wrappers for `setup`, and where a
method asks for new pairs (`add_lora`) it gets these wrappers back, with the user's factors in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

from peft import PeftModel
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from typing_extensions import override

from gorp.errors import ConfigError
from gorp.layers.lora import LoraSettings
from gorp.layers.low_rank import replace
from gorp.layers.names import weight_name
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta


PLAIN_INIT = (True, "gaussian")
"""`init_lora_weights` that leave the base weights as they are and B zero."""


@dataclass(frozen=True, kw_only=True)
class GivenPairs(LoraSettings):
    """Settings read from the user's adapter, and its layers."""

    layers: Mapping[str, LoraLayer] = field(default_factory=dict, compare=False)
    """Name of a layer in the base model -> PEFT's wrapper around it."""

    @override
    def wrappers(self, model: nn.Module, layers: list[str]) -> list[LoraLayer]:
        return [self.layers[name] for name in layers]


def settings_record(settings: LoraSettings) -> dict[str, Any]:
    """Return the options of a `lora:` block as JSON values, without the layers of a `GivenPairs`."""
    return {item.name: getattr(settings, item.name) for item in fields(LoraSettings)}


def base_model(model: nn.Module) -> nn.Module:
    """Return the Hugging Face model inside a `PeftModel`; any other model is returned as it is."""
    return cast(nn.Module, model.get_base_model()) if isinstance(model, PeftModel) else model


def given_pairs(model: nn.Module) -> GivenPairs | None:
    """Read the LoRA adapter of a model; None if it has no adapter.

    Args:
        model: A `PeftModel`, or a model with PEFT layers.

    Raises:
        ConfigError: If the adapter is none that a continual-learning method can train: no plain LoRA, more than one, or
            trained already. The message names the option of its configuration.
    """
    base = base_model(model)
    tuned = {name: layer for name, layer in base.named_modules() if isinstance(layer, BaseTunerLayer)}
    if not tuned:
        return None
    configs = getattr(model, "peft_config", None) or {}
    if len(configs) != 1:
        raise ConfigError(
            f"the model has {len(configs)} adapters ({', '.join(configs) or 'unknown'}); wanted one LoRA adapter, or "
            "none. Give the model with the adapter of this task alone: gorp adds what earlier tasks changed."
        )
    ((name, config),) = configs.items()
    _check_config(config)
    layers = {key: layer for key, layer in tuned.items() if type(layer) is Linear}
    for key, layer in tuned.items():
        if key not in layers:
            raise ConfigError(
                f"the adapter has a `{type(layer).__name__}` layer on `{key}`; gorp trains pairs on linear layers "
                "(`peft.tuners.lora.Linear`). Leave it out of `target_modules`."
            )
        up = cast(Any, layer).lora_B[name].weight
        if up.any():
            raise ConfigError(
                f"the model's adapter is trained already (B of `{key}` is not zero). If it is the result of an "
                "earlier task, begin with Protection.from_adapter, which protects that task, and give the next task "
                "the base model with a new adapter."
            )
        if layer.merged:
            raise ConfigError("the model's adapter is merged into its weights. Call `unmerge_adapter()` first.")
    return GivenPairs(
        r=max(cast(Any, layer).r[name] for layer in layers.values()),
        lora_alpha=float(config.lora_alpha),
        lora_dropout=float(config.lora_dropout),
        target_modules=tuple(layers),
        layers=layers,
    )


def _check_config(config: Any) -> None:
    """Raise if an option of a `LoraConfig` adds something else than s B A x, or trains something besides A and B."""
    unusual = not_plain(vars(config), inits=PLAIN_INIT)
    if unusual is not None:
        key, value, wanted = unusual
        raise ConfigError(
            f"the adapter's `{key}` is {value!r}; gorp protects earlier tasks for a plain LoRA adapter only, where "
            f"it is {wanted!r}. Change the LoraConfig, or give the model without an adapter and let gorp add "
            "the pairs."
        )


def not_plain(options: Mapping[str, Any], *, inits: Sequence[Any]) -> tuple[str, Any, Any] | None:
    """Return the first option of a LoRA adapter that makes it compute something else than W x + s B A x.

    Args:
        options: The fields of a `LoraConfig`, or of an adapter_config.json.
        inits: The allowed values of `init_lora_weights`; others change the base weights.

    Returns:
        The option, its value, and the value that it must have; None if the adapter is plain LoRA.
    """
    wanted: dict[str, Sequence[Any]] = {
        "peft_type": ("LORA",),
        "use_dora": (False, None),
        "bias": ("none", None),
        "lora_bias": (False, None),
        "modules_to_save": (None, []),
        "trainable_token_indices": (None,),
        "target_parameters": (None, []),
        "layer_replication": (None,),
        "alora_invocation_tokens": (None,),
        "use_qalora": (False, None),
        "use_bdlora": (None, False),
        "arrow_config": (None,),
        "kasa_config": (None,),
        "monteclora_config": (None,),
        "init_lora_weights": inits,
    }
    for key, allowed in wanted.items():
        value = options.get(key, allowed[0])
        value = getattr(value, "value", value)
        if value not in allowed:
            return key, value, allowed[0]
    return None


def take_out(model: nn.Module, pairs: GivenPairs) -> None:
    """Put the base layers in the place of PEFT's wrappers."""
    for name, layer in pairs.layers.items():
        replace(model, name, cast(nn.Module, layer.get_base_layer()))


def put_back(model: nn.Module, pairs: GivenPairs) -> None:
    """Put PEFT's wrappers around their layers again."""
    for name, layer in pairs.layers.items():
        if model.get_submodule(name) is not layer:
            replace(model, name, cast(nn.Module, layer))


def leave_as_trained(
    model: nn.Module, pairs: GivenPairs, weights: BaseWeights, deltas: Mapping[str, WeightDelta]
) -> None:
    """Put the wrappers back after a task, with the trained factors in them: the model answers as training left it.

    The weight under a pair is W₀ + delta - s B A, because the delta includes the pair, and the wrapper adds it.
    """
    for name, layer in pairs.layers.items():
        key, parts = weight_name(name), cast(Any, layer)
        (adapter,) = parts.lora_A
        up, down = parts.lora_B[adapter].weight.detach(), parts.lora_A[adapter].weight.detach()
        minus = WeightDelta.of_factors(-parts.scaling[adapter] * up, down.mT)  # -s B, m x r; Aᵀ, n x r
        weights.set(key, [deltas[key], minus])
    put_back(model, pairs)
