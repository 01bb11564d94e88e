"""The files of a model's folder: refused where they are no whole base model, and digested to tell one from another."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gorp.errors import ModelError


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""One file, or the list of several; transformers looks for no other names."""

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

IGNORABLE = (".inv_freq", ".masked_bias", ".attn.bias", ".attention.bias", ".position_ids", ".num_batches_tracked")
"""Ends of names in older files that were tables, not weights: the model makes them itself."""

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "special_tokens_map.json")
"""What a tokenizer is made of."""

TOKENIZER_MORE = ("added_tokens.json", "*.spm")
"""What some tokenizers have besides. Its digest is one of its own, so that records from before it still hold."""

GENERATION = "generation_config.json"
GENERATION_FIELDS = ("bos_token_id", "decoder_start_token_id", "eos_token_id", "forced_bos_token_id")
"""All that an answer's decoding takes from it: no sampling, no penalties."""

NOT_THE_FUNCTION = (
    "transformers_version",
    "_name_or_path",
    "name_or_path",
    "dtype",
    "torch_dtype",
    "use_cache",
    "chat_template",
)
"""Fields of JSON files that do not decide what the model computes, or which tokens a text has. The run's `model.dtype`
decides the dtype, and what a chat template makes of a row is compared as a row."""


def check_folder(folder: Path, *, trust_remote_code: bool) -> None:
    """Refuse a folder that is no whole base model in safetensors, before anything of it is loaded.

    Raises:
        ModelError: It says what is there instead, and what to do.
    """
    check_description(folder, trust_remote_code=trust_remote_code)
    for path in sorted(folder.glob("*.safetensors")):
        if not path.exists():
            raise ModelError(f"{path}: a link to `{path.readlink()}`, which is not there. Fetch the model again.")
    if (folder / WEIGHTS).is_file():
        return
    if (folder / INDEX).is_file():
        _check_shards(folder)
        return
    others = [path.name for path in sorted(folder.glob("*.safetensors"))]
    if others:
        raise ModelError(
            f"{folder}: holds {', '.join(f'`{name}`' for name in others[:3])}, but weights are looked for in "
            f"`{WEIGHTS}`, or in the files that `{INDEX}` lists. Rename the file, or save the model again."
        )
    raise ModelError(
        f"{folder}: no *.safetensors. Pickled weights are not loaded; convert them with "
        "`model.save_pretrained(folder)` of transformers."
    )


def check_description(folder: Path, *, trust_remote_code: bool) -> None:
    """Refuse a folder that does not describe a base model, whatever weights lie in it.

    Raises:
        ModelError: For an adapter, and where config.json is missing, damaged, or needs code that may not run.
    """
    if adapters := [name for name in ADAPTER_FILES if (folder / name).exists()]:
        raise ModelError(
            f"{folder}: holds `{adapters[0]}`, so this is a LoRA adapter (PEFT), alone or beside the weights. Merge it "
            "into its base model first (`model.merge_and_unload().save_pretrained(folder)`), or remove the adapter's "
            "files to use the base model alone."
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; wanted a folder written by `save_pretrained`.")
    read_config(folder, trust_remote_code=trust_remote_code)


def read_config(folder: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    """The values of config.json.

    Raises:
        ModelError: If it is damaged, names no kind of model, or needs code that may not run.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a whole JSON file ({error}). Fetch or save the model again.") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise ModelError(f"{path}: names no `model_type`, so the kind of model is unknown. Save the model again.")
    if config.get("auto_map") and not trust_remote_code and not _is_known(config["model_type"]):
        raise ModelError(
            f"{path}: the model type `{config['model_type']}` comes with Python code of its own (`auto_map`), which "
            "runs only where you say so. Read that code, then set `model.trust_remote_code: true`."
        )
    return config


def check_quantization(folder: Path, architecture: Any) -> None:
    """Refuse quantized weights, but for the two kinds that transformers turns back where it lacks their kernels.

    Raises:
        ModelError: It names the kind.
    """
    settings = getattr(architecture, "quantization_config", None) or {}
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    kind = settings.get("quant_method", "") or ("bitsandbytes" if settings else "")
    if kind and kind not in ("mxfp4", "fp8") and not settings.get("dequantize"):
        raise ModelError(
            f"{folder}: its weights are quantized ({kind}), and gorp changes weights of floating point only. Load the "
            "model that it was quantized from; `model.dtype: bfloat16` takes half the memory of float32."
        )


def check_loading(folder: Path, kind: str, loading: dict[str, Any]) -> None:
    """Refuse files that are not exactly the weights that config.json describes.

    Raises:
        ModelError: It names a weight that is missing, of another shape, or without a place in the model.
    """
    for name, found, wanted in sorted(loading.get("mismatched_keys") or []):
        raise ModelError(
            f"{folder}: `{name}` has shape {tuple(found)} in the files, and {tuple(wanted)} by config.json. They do "
            "not belong together; fetch or save the model again."
        )
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"{folder}: the files lack {len(missing)} weights of {kind}, for example `{missing[0]}`; "
            "they would be random. Is it a model for another purpose, or half of one?"
        )
    without_place = sorted(key for key in loading["unexpected_keys"] if not key.endswith(IGNORABLE))
    if without_place:
        raise ModelError(
            f"{folder}: the files hold {len(without_place)} weights that have no place in {kind} as config.json "
            f"describes it, for example `{without_place[0]}`; they would be left out. Has config.json fewer layers, or "
            "is it a model for another purpose?"
        )


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the weight files of `folder`, names and contents, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def base_digests(folder: Path, *, trust_remote_code: bool = False) -> dict[str, str]:
    """What tells a base model from another.

    `sha256` is of its weights, `config_sha256` of config.json, `tokenizer_sha256` and `tokenizer_more_sha256` of the
    tokenizer's files, `generation_sha256` of `GENERATION_FIELDS`, `code_sha256` of its Python files.

    JSON files count by their values, whatever the order and the blanks, without `NOT_THE_FUNCTION`.

    Args:
        folder: Of the model.
        trust_remote_code: Whether its Python code runs; where it does not, it decides nothing.
    """
    return {
        "sha256": weights_sha256(folder),
        "config_sha256": _content(folder / "config.json"),
        "tokenizer_sha256": _joined(folder, TOKENIZER_FILES),
        "tokenizer_more_sha256": _joined(folder, TOKENIZER_MORE),
        "generation_sha256": _generation(folder / GENERATION),
        "code_sha256": _joined(folder, ("*.py",) if trust_remote_code else ()),
    }


def _check_shards(folder: Path) -> None:
    index = folder / INDEX
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not a list of weight files ({error}). Fetch or save the model again.") from None
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{index}: names `{name}`; wanted *.safetensors of the same folder. Fetch or save the model again."
            )
        if not (folder / name).is_file():
            raise ModelError(f"{index}: names `{name}`, which is not there. Fetch the model again.")


def _is_known(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _joined(folder: Path, patterns: Iterable[str]) -> str:
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    lines = [f"{path.name} {_content(path)}\n" for path in sorted(paths)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _generation(path: Path) -> str:
    content = path.read_bytes() if path.is_file() else b""  # without it, config.json decides
    try:
        values = json.loads(content)
        content = json.dumps([values.get(field) for field in GENERATION_FIELDS]).encode()
    except (ValueError, AttributeError):
        pass  # transformers takes it for missing
    return hashlib.sha256(content).hexdigest()


def _content(path: Path) -> str:
    """SHA-256 of a file; of JSON, of what decides the function."""
    content = path.read_bytes()
    if path.suffix == ".json":
        try:
            content = json.dumps(_function(json.loads(content)), sort_keys=True).encode()
        except ValueError:
            pass  # not JSON after all
    return hashlib.sha256(content).hexdigest()


def _function(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _function(item) for key, item in value.items() if key not in NOT_THE_FUNCTION}
    return [_function(item) for item in value] if isinstance(value, list) else value
