"""The files of a model's folder: check that they are a complete base model, and compute digests that identify it."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gorp.errors import ModelError


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file with all weights, or the index of several files; transformers reads no other names."""

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

IGNORABLE = (".inv_freq", ".masked_bias", ".attn.bias", ".attention.bias", ".position_ids", ".num_batches_tracked")
"""Suffixes of tensor names in older files that are computed tables, not weights: the model computes them itself."""

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "special_tokens_map.json")
"""Files of a tokenizer."""

TOKENIZER_MORE = ("added_tokens.json", "*.spm")
"""Further files of some tokenizers. They have a digest of their own, so that digests recorded earlier stay valid."""

GENERATION = "generation_config.json"
GENERATION_FIELDS = ("bos_token_id", "decoder_start_token_id", "eos_token_id", "forced_bos_token_id")
"""The fields of `GENERATION` that decoding uses; gorp decodes without sampling and without penalties."""

NOT_THE_FUNCTION = (
    "transformers_version",
    "_name_or_path",
    "name_or_path",
    "dtype",
    "torch_dtype",
    "use_cache",
    "chat_template",
)
"""Fields of JSON files that affect neither what the model computes nor how text is tokenized. The run's `model.dtype`
decides the dtype. A chat template affects rows, and those are compared themselves."""


def check_folder(folder: Path, *, trust_remote_code: bool) -> None:
    """Raise if a folder is not a complete base model in safetensors; nothing is loaded.

    Raises:
        ModelError: The message says what was found instead, and what to do.
    """
    check_description(folder, trust_remote_code=trust_remote_code)
    for path in sorted(folder.glob("*.safetensors")):
        if not path.exists():
            raise ModelError(f"{path}: a link to `{path.readlink()}`, which does not exist. Download the model again.")
    if (folder / WEIGHTS).is_file():
        return
    if (folder / INDEX).is_file():
        _check_shards(folder)
        return
    others = [path.name for path in sorted(folder.glob("*.safetensors"))]
    if others:
        raise ModelError(
            f"{folder}: holds {', '.join(f'`{name}`' for name in others[:3])}, but weights are read only from "
            f"`{WEIGHTS}`, or from the files that `{INDEX}` lists. Rename the file, or save the model again."
        )
    raise ModelError(
        f"{folder}: there is no *.safetensors file. Pickled weights are not loaded; convert them with "
        "`model.save_pretrained(folder)` of transformers."
    )


def check_description(folder: Path, *, trust_remote_code: bool) -> None:
    """Raise if the files of a folder, except its weights, do not describe a base model.

    Raises:
        ModelError: If the folder holds an adapter, or config.json is missing, damaged, or needs code that may not run.
    """
    if adapters := [name for name in ADAPTER_FILES if (folder / name).exists()]:
        raise ModelError(
            f"{folder}: holds `{adapters[0]}`, so it contains a LoRA adapter (PEFT), with or without the base weights. "
            "Merge it into its base model first (`model.merge_and_unload().save_pretrained(folder)`), or remove the "
            "adapter's files to use the base model alone."
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; it must be a folder written by `save_pretrained`.")
    read_config(folder, trust_remote_code=trust_remote_code)


def read_config(folder: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    """Return the values of config.json.

    Raises:
        ModelError: If the file is damaged, has no `model_type`, or needs code that may not run.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a whole JSON file ({error}). Download or save the model again.") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise ModelError(f"{path}: names no `model_type`, so the kind of model is unknown. Save the model again.")
    if config.get("auto_map") and not trust_remote_code and not _is_known(config["model_type"]):
        raise ModelError(
            f"{path}: the model type `{config['model_type']}` comes with Python code of its own (`auto_map`), which "
            "runs only if you allow it. Read that code, then set `model.trust_remote_code: true`."
        )
    return config


def check_quantization(folder: Path, architecture: Any) -> None:
    """Raise if the weights are quantized.

    Allowed are mxfp4 and fp8, which transformers dequantizes if their kernels are missing, and `dequantize: true`.

    Raises:
        ModelError: The message names the kind of quantization.
    """
    settings = getattr(architecture, "quantization_config", None) or {}
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    kind = settings.get("quant_method", "") or ("bitsandbytes" if settings else "")
    if kind and kind not in ("mxfp4", "fp8") and not settings.get("dequantize"):
        raise ModelError(
            f"{folder}: its weights are quantized ({kind}), and gorp can change only floating-point weights. Use the "
            "model that it was quantized from; `model.dtype: bfloat16` takes half the memory of float32."
        )


def check_size(folder: Path, described: int) -> None:
    """Raise if config.json describes a model that is far larger than the files, before memory is taken for it.

    Smaller differences are left to `check_loading`, which names a weight.

    Args:
        folder: The model's folder.
        described: Number of parameters of the model that config.json describes.

    Raises:
        ModelError: If they are more than twice the numbers in the files.
    """
    from safetensors import SafetensorError, safe_open

    held = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                held += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
        except (OSError, SafetensorError):  # reported when it is loaded
            return
    if described > 2 * held:
        raise ModelError(
            f"{folder}: config.json describes a model of {described:,} weights, but the files hold only {held:,}. They "
            "do not belong together; download or save the model again."
        )


def check_loading(folder: Path, kind: str, loading: dict[str, Any]) -> None:
    """Raise if the files do not hold exactly the weights that config.json describes.

    Args:
        folder: The model's folder, for messages.
        kind: Class name of the model, for messages.
        loading: The loading report of transformers (`output_loading_info`).

    Raises:
        ModelError: The message names a weight that is missing, has another shape, or has no place in the model.
    """
    for name, found, expected in sorted(loading.get("mismatched_keys") or []):
        raise ModelError(
            f"{folder}: `{name}` has shape {tuple(found)} in the files, but {tuple(expected)} by config.json. They do "
            "not belong together; download or save the model again."
        )
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"{folder}: the files lack {len(missing)} weights of {kind}, for example `{missing[0]}`; they would be "
            "random. Check that this is a complete model for generating text, and download or save it again."
        )
    without_place = sorted(key for key in loading["unexpected_keys"] if not key.endswith(IGNORABLE))
    if without_place:
        raise ModelError(
            f"{folder}: the files hold {len(without_place)} weights that have no place in {kind} as config.json "
            f"describes it, for example `{without_place[0]}`; they would be ignored. Check that config.json has the "
            "right number of layers and that this is a model for generating text."
        )


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of the weight files of `folder`, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def base_digests(folder: Path, *, trust_remote_code: bool = False) -> dict[str, str]:
    """Return the digests that identify a base model.

    `sha256` is that of its weights, `config_sha256` of config.json, `tokenizer_sha256` and `tokenizer_more_sha256` of
    the tokenizer's files, `generation_sha256` of `GENERATION_FIELDS`, `code_sha256` of its Python files.

    The digest of a JSON file does not depend on the order of keys or on whitespace, and leaves out `NOT_THE_FUNCTION`.

    Args:
        folder: The model's folder.
        trust_remote_code: Whether its Python code may run. If not, the code has no effect and is left out.
    """
    return {
        "sha256": weights_sha256(folder),
        "config_sha256": _content_sha256(folder / "config.json"),
        "tokenizer_sha256": _files_sha256(folder, TOKENIZER_FILES),
        "tokenizer_more_sha256": _files_sha256(folder, TOKENIZER_MORE),
        "generation_sha256": _generation_sha256(folder / GENERATION),
        "code_sha256": _files_sha256(folder, ("*.py",) if trust_remote_code else ()),
    }


def _check_shards(folder: Path) -> None:
    """Raise if the index is damaged, or names files that are missing or not in the folder."""
    index = folder / INDEX
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not a list of weight files ({error}). Download or save the model again.") from None
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{index}: names `{name}`; it must be a *.safetensors file of the same folder. Download or save the "
                "model again."
            )
        if not (folder / name).is_file():
            raise ModelError(f"{index}: names `{name}`, which is missing. Download the model again.")


def _is_known(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _files_sha256(folder: Path, patterns: Iterable[str]) -> str:
    """Return the SHA-256 of the names and contents of the files that match one of the patterns."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    lines = [f"{path.name} {_content_sha256(path)}\n" for path in sorted(paths)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _generation_sha256(path: Path) -> str:
    """Return the SHA-256 of the values of `GENERATION_FIELDS` in generation_config.json."""
    content = path.read_bytes() if path.is_file() else b""  # without the file, config.json decides
    try:
        values = json.loads(content)
        content = json.dumps([values.get(field) for field in GENERATION_FIELDS]).encode()
    except (ValueError, AttributeError):
        pass  # transformers treats a damaged file as missing
    return hashlib.sha256(content).hexdigest()


def _content_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; of a JSON file, that of its relevant values."""
    content = path.read_bytes()
    if path.suffix == ".json":
        try:
            content = json.dumps(_without_irrelevant(json.loads(content)), sort_keys=True).encode()
        except ValueError:
            pass  # the content is not JSON
    return hashlib.sha256(content).hexdigest()


def _without_irrelevant(value: Any) -> Any:
    """Return a JSON value without the fields of `NOT_THE_FUNCTION`, at any depth."""
    if isinstance(value, Mapping):
        return {key: _without_irrelevant(item) for key, item in value.items() if key not in NOT_THE_FUNCTION}
    return [_without_irrelevant(item) for item in value] if isinstance(value, list) else value
