"""Write a PEFT LoRA adapter that vLLM, llama.cpp and PEFT read in the same way.

vLLM computes the scale as lora_alpha / r and ignores `rank_pattern` and `alpha_pattern`; it refuses `modules_to_save`
and DoRA. So every pair has the same r, padded with zeros, lora_alpha is r, and the scale is 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gorp.errors import ConfigError
from gorp.layers.names import SUFFIX, layer_name
from gorp.storage import read_json, write_json
from gorp.weights.delta import WeightDelta


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""PEFT's prefix of a layer's name in the file."""


def check_matrices(deltas: Mapping[str, WeightDelta]) -> None:
    """Raise ConfigError if a delta is not that of a matrix, so that no LoRA pair can be it. Needs no model."""
    _refuse([name for name, delta in deltas.items() if len(delta.shape) != 2 or not name.endswith(SUFFIX)])


def check_linear(model: nn.Module, names: Iterable[str]) -> None:
    """Raise ConfigError if one of the weights is not that of an `nn.Linear`, for example an embedding."""
    _refuse([name for name in names if not isinstance(model.get_submodule(layer_name(name)), nn.Linear)])


def _refuse(names: Sequence[str]) -> None:
    if names:
        some = ", ".join(f"`{name}`" for name in names[:5]) + (", …" if len(names) > 5 else "")
        raise ConfigError(
            f"training changed {len(names)} weights that a LoRA adapter cannot carry, because they are not those of "
            f"linear layers: {some}. Use --to merged."
        )


def target_names(layers: Iterable[str], model: nn.Module) -> list[str]:
    """Return PEFT's `target_modules` that select exactly `layers`.

    These are the ends of the names, such as `q_proj`, if they select no other module of `model`; else the full names.
    """
    wanted = set(layers)
    ends = {name.rpartition(".")[2] for name in wanted}
    selected = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends if selected == wanted else wanted)


def write_adapter(
    folder: Path, pairs: Mapping[str, tuple[Tensor, Tensor]], *, targets: list[str], base: str, encoder_decoder: bool
) -> None:
    """Write `CONFIG` and `WEIGHTS`.

    Args:
        folder: Where to write; it exists.
        pairs: Name of a weight -> B (m x r) and A (r x n), the same r for all.
        targets: `target_modules`.
        base: Name of the base model.
        encoder_decoder: Kind of the base model.
    """
    [rank] = {down.shape[0] for _, down in pairs.values()}
    tensors = {}
    for name, (up, down) in sorted(pairs.items()):
        tensors[f"{PREFIX}{layer_name(name)}.lora_A.weight"] = down.contiguous()
        tensors[f"{PREFIX}{layer_name(name)}.lora_B.weight"] = up.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    # PEFT writes a set in random order; the same version shall give the same bytes.
    write_json(folder / CONFIG, read_json(folder / CONFIG) | {"target_modules": sorted(targets)})


def read_pairs(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the pairs of an adapter folder: name of a weight -> B, A."""
    tensors = load_file(folder / WEIGHTS)
    layers = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    return {
        layer.removeprefix(PREFIX) + SUFFIX: (tensors[f"{layer}.lora_B.weight"], tensors[f"{layer}.lora_A.weight"])
        for layer in layers
    }
