"""Find and load a base model, given by a folder, a hub id, or the name of the model that comes with gorp.

Weights are read only from safetensors. Code from a model's folder runs only with `trust_remote_code`.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

from gorp.errors import ConfigError, ModelError, nearest
from gorp.models.behaviour import ordinary_tokens, sees_later_tokens
from gorp.models.files import (
    check_description,
    check_folder,
    check_loading,
    check_quantization,
    check_size,
    read_config,
)


SHIPPED = "gorp-tiny-t5"
"""The model that comes with the package, an encoder-decoder."""

SHIPPED_FOLDER = Path(__file__).parent / "shipped"

FILES = ("*.safetensors", "*.json", "*.model", "*.spm", "*.tiktoken", "*.txt", "*.jinja")
"""Files to download of a hub model: weights, configuration, tokenizer. No pickled weights."""

DESCRIPTION = ("config.json", "adapter_config.json")
"""Files to download of a hub model if only its shapes are needed."""

TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.model")
"""A folder without any of these files has no tokenizer."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The `model:` block of a configuration.

    Example:
        >>> from gorp import ModelConfig
        >>> ModelConfig(path="gorp-tiny-t5").dtype
        'float32'
    """

    path: str
    """A folder, the name of the shipped model, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model. Give a commit if the model must stay the same."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Dtype of the base weights; `auto` is that of the files. What training adds is always float32."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run. Set it only for models whose code you have read."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` if the path is empty, since it would mean the current folder."""
        if not self.path.strip():
            raise ConfigError("model.path is empty; it must be a folder, the name of the shipped model, or a hub id.")


def locate(config: ModelConfig) -> Path:
    """Return the local folder of the model; a hub model is downloaded, or taken from the cache when offline.

    Raises:
        ModelError: If there is no such model, or its folder is not a complete base model in safetensors.
    """
    folder = _folder(config, FILES)
    check_folder(folder, trust_remote_code=config.trust_remote_code)
    return folder


def on_this_machine(config: ModelConfig) -> Path | None:
    """Return the local folder of the model if it can be found without a download; its files are not checked."""
    if config.path == SHIPPED or Path(config.path).is_dir():
        return _folder(config, FILES)
    try:
        kept = snapshot_download(config.path, revision=config.revision, allow_patterns=[*FILES], local_files_only=True)
    except Exception:  # not an id of the hub, or not in its cache
        return None
    return Path(kept)


def architecture_of(config: ModelConfig) -> PreTrainedConfig:
    """Return the transformers configuration of a model in a local folder.

    Raises:
        ModelError: If config.json cannot be used, or the model does not generate text.
    """
    return _auto_class(config, Path(config.path))[1]


def load_tokenizer(config: ModelConfig, *, weights: bool = True) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer. If it has no pad token, the eos token is used for padding, which is masked.

    Args:
        config: The model.
        weights: Whether the weights must be there too. If not, those of a hub model are not downloaded.

    Raises:
        ModelError: If there is no tokenizer, or it has no eos token.
    """
    folder = locate(config) if weights else _folder(config, FILES[1:])
    # Checked here, because transformers would make an empty tokenizer.
    if not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        raise ModelError(
            f"{folder}: there is no tokenizer in the model's folder. Save it there with "
            "`tokenizer.save_pretrained(folder)`."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # each kind of tokenizer raises errors of its own
        raise ModelError(
            f"{folder}: its tokenizer cannot be loaded ({_first_line(error)}). Save it in the model's folder with "
            "`tokenizer.save_pretrained(folder)`."
        ) from error
    if not len(tokenizer) or tokenizer.eos_token_id is None:
        raise ModelError(
            f"{folder}: the tokenizer has no {'tokens' if not len(tokenizer) else 'eos token'}, so answers cannot be "
            "encoded or ended. Save the model's own tokenizer in the folder."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: ModelConfig, device: str | torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model, in eval mode on `device`, and its tokenizer.

    Its config.json decides whether it is an encoder-decoder or a decoder-only model.

    Raises:
        ModelError: If the model does not generate text, the files do not fit its config.json, a weight is not finite,
            the tokenizer does not fit, or the model's logits depend on later tokens.

    Example:
        >>> from gorp import ModelConfig, load_model
        >>> model, tokenizer = load_model(ModelConfig(path="gorp-tiny-t5"), "cpu")
        >>> model.num_parameters()
        15360504
    """
    folder = locate(config)
    auto, architecture = _auto_class(config, folder)
    tokenizer = load_tokenizer(config)  # after the architecture: if that is unknown, the tokenizer fails to load too
    vocabulary = getattr(architecture.get_text_config(), "vocab_size", len(tokenizer))
    if len(tokenizer) > vocabulary:
        raise ModelError(
            f"{folder}: the tokenizer knows {len(tokenizer)} tokens, the model {vocabulary}. They do not belong "
            "together; save the model's own tokenizer in the folder."
        )
    check_quantization(folder, architecture)
    if not config.trust_remote_code:
        described = skeleton(replace(config, path=str(folder), revision=None))
        check_size(folder, sum(parameter.numel() for parameter in described.parameters()))
    try:
        model, loading = auto.from_pretrained(
            folder,
            config=architecture,
            dtype="auto" if config.dtype == "auto" else getattr(torch, config.dtype),
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            ignore_mismatched_sizes=True,  # `check_loading` refuses them, with the weight's name
            output_loading_info=True,
        )
    except Exception as error:  # damaged files, missing packages
        raise ModelError(f"{folder}: the model cannot be loaded ({_first_line(error)}).") from error
    check_loading(folder, type(model).__name__, loading)
    model = model.to(device).eval()
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise ModelError(f"{folder}: the weight `{name}` has values that are not finite. Download the model again.")
    if not architecture.is_encoder_decoder and _sees_later_tokens(folder, model, tokenizer):
        raise ModelError(
            f"{folder}: `{architecture.model_type}` ({type(model).__name__}) does not generate text: its logits at a "
            "token depend on later tokens, so in training it would read the answer. Use a decoder with a causal mask; "
            "for a BERT that was trained as a decoder, set `is_decoder: true` in its config.json."
        )
    return model, tokenizer


def skeleton(config: ModelConfig) -> PreTrainedModel:
    """Return the model without weights, on the meta device, in training mode.

    It reads only `config.json`; of a hub model it downloads only that.

    Raises:
        ModelError: If there is no such model, it does not generate text, or no model can be made of its config.json.
    """
    folder = _folder(config, DESCRIPTION)
    check_description(folder, trust_remote_code=config.trust_remote_code)
    auto, architecture = _auto_class(config, folder)
    check_quantization(folder, architecture)
    dtype = architecture.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    try:
        with torch.device("meta"):
            model = auto.from_config(
                architecture, dtype=dtype or torch.float32, trust_remote_code=config.trust_remote_code
            )
    except Exception as error:  # impossible values, missing packages
        raise ModelError(f"{folder}: no model can be made from its config.json ({_first_line(error)}).") from error
    return model.train()


def _folder(config: ModelConfig, files: tuple[str, ...]) -> Path:
    """Return the model's local folder. Of a hub model, download the files that match `files`."""
    if config.path == SHIPPED:
        folder = SHIPPED_FOLDER / SHIPPED
        if not folder.is_dir():
            raise ModelError(
                f"model.path: this installation of gorp does not contain `{config.path}` (no folder {folder}). Install "
                "the released package, or give the folder or hub id of a model."
            )
        return folder
    return Path(config.path) if Path(config.path).is_dir() else _fetch(config, files)


def _fetch(config: ModelConfig, files: tuple[str, ...]) -> Path:
    """Return a snapshot of a hub model in the local cache, with at least the files that match `files`."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", config.path) or config.path.startswith("."):
        raise ModelError(f"model.path: {config.path}: there is no such folder, and it is not a hub id either.")
    patterns: list[str] = [*files, "*.py"] if config.trust_remote_code else [*files]
    try:
        return Path(snapshot_download(config.path, revision=config.revision, allow_patterns=patterns))
    except Exception as error:  # network, hub and cache raise errors of their own
        shipped = [SHIPPED] if (SHIPPED_FOLDER / SHIPPED).is_dir() else []
        raise ModelError(
            f"model.path: `{config.path}` is not a folder, not the shipped model "
            f"({shipped[0] if shipped else 'there is none'}), and cannot be downloaded as a hub model "
            f"({_first_line(error)}).{nearest(config.path, shipped)}"
        ) from error


def _auto_class(config: ModelConfig, folder: Path) -> tuple[Any, Any]:
    """Return the auto class of transformers that loads the model, and the model's configuration."""
    read_config(folder, trust_remote_code=config.trust_remote_code)
    try:
        architecture = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # unknown model types, damaged JSON
        raise ModelError(
            f"{folder}: its config.json cannot be used ({_first_line(error)}). "
            "Correct it, download the model again, or install a version of transformers that knows this kind of model."
        ) from error
    remote = getattr(architecture, "auto_map", {}) if config.trust_remote_code else {}
    if type(architecture) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING and architecture.is_encoder_decoder:
        return AutoModelForSeq2SeqLM, architecture
    if type(architecture) in MODEL_FOR_CAUSAL_LM_MAPPING and not _is_encoder(architecture):
        return AutoModelForCausalLM, architecture
    if "AutoModelForSeq2SeqLM" in remote:
        return AutoModelForSeq2SeqLM, architecture
    if "AutoModelForCausalLM" in remote:
        return AutoModelForCausalLM, architecture
    own_code = getattr(architecture, "auto_map", None) and not remote
    advice = " It names Python code of its own, which runs with `model.trust_remote_code: true`." if own_code else ""
    raise ModelError(
        f"{folder}: `{architecture.model_type}` ({', '.join(architecture.architectures or ['no architecture named'])}) "
        f"does not generate text. Use an encoder-decoder such as T5 or a decoder such as Llama.{advice}"
    )


def _is_encoder(architecture: Any) -> bool:
    """Return whether the model was not trained to generate text, such as a masked language model.

    transformers can load such a model as a decoder too, so only the architecture's name tells.
    """
    generating = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    names = architecture.architectures or []
    return bool(names) and not any(name.endswith(generating) for name in names)


def _sees_later_tokens(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        return sees_later_tokens(model, ordinary_tokens(tokenizer))
    except Exception as error:  # each architecture raises errors of its own
        raise ModelError(f"{folder}: the forward pass of a row of tokens fails ({_first_line(error)}).") from error


def _first_line(error: Exception) -> str:
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {more[0].strip()}" if first.endswith(":") and more else first
