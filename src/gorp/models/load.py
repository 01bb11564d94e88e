"""Find a base model, fingerprint its weights, load it: a folder, a hub id, or the name of the model that gorp ships.

Weights are safetensors and nothing else; code from a model's folder runs only where `trust_remote_code` says so.
"""

import re
from dataclasses import dataclass
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
from gorp.models.files import check_description, check_folder, check_loading, check_quantization, read_config


SHIPPED = "gorp-tiny-t5"
"""The model that comes with the package, an encoder-decoder."""

SHIPPED_FOLDER = Path(__file__).parent / "shipped"

FILES = ("*.safetensors", "*.json", "*.model", "*.spm", "*.tiktoken", "*.txt", "*.jinja")
"""What is fetched of a hub model: weights, configuration, tokenizer. No pickles."""

DESCRIPTION = ("config.json", "adapter_config.json")
"""What is fetched of a hub model for its shapes alone."""

TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.model")
"""A folder with none of these has no tokenizer."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The `model:` block.

    Example:
        >>> from gorp import ModelConfig
        >>> ModelConfig(path="gorp-tiny-t5").dtype
        'float32'
    """

    path: str
    """A folder, the name of the shipped model, or a hub id."""
    revision: str | None = None
    """Of a hub model: branch, tag or commit. Pin a commit for a model that is to stay the same."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the frozen weights; `auto` is what the files hold. What training adds is float32 in any case."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run. Only for models whose code you have read."""

    def __post_init__(self) -> None:
        """Refuse a path that is empty, which would be the current folder."""
        if not self.path.strip():
            raise ConfigError("model.path is empty; wanted a folder, the name of the shipped model, or a hub id.")


def locate(config: ModelConfig) -> Path:
    """The local folder of the model; a hub model is fetched, or taken from the cache when offline.

    Raises:
        ModelError: If there is no such model, or its folder is no whole base model in safetensors.
    """
    folder = _folder(config, FILES)
    check_folder(folder, trust_remote_code=config.trust_remote_code)
    return folder


def architecture_of(config: ModelConfig) -> PreTrainedConfig:
    """The values of config.json of a model in a local folder, as its kind of model reads them.

    Raises:
        ModelError: If they cannot be used, or the model generates no text.
    """
    return _auto_class(config, Path(config.path))[1]


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer; without a pad token it pads with eos, which is masked.

    Raises:
        ModelError: If there is none, or it has no eos token.
    """
    folder = locate(config)
    if not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):  # transformers makes an empty one
        raise ModelError(f"{folder}: no tokenizer beside the model. Save it with `tokenizer.save_pretrained(folder)`.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # each kind of tokenizer fails in its own way
        raise ModelError(
            f"{folder}: its tokenizer cannot be loaded ({_first_line(error)}). Save it beside the model with "
            "`tokenizer.save_pretrained(folder)`."
        ) from error
    if not len(tokenizer) or tokenizer.eos_token_id is None:
        raise ModelError(
            f"{folder}: the tokenizer has no {'tokens' if not len(tokenizer) else 'eos token'}, so no answer could "
            "be read or could end. Save the model's own tokenizer beside it."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: ModelConfig, device: str | torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model, in eval mode on `device`, and its tokenizer. The configuration decides which of two kinds it is.

    Raises:
        ModelError: If the architecture generates no text, the files do not fit it, a weight is not finite, the
            tokenizer does not fit, or the model sees later tokens.

    Example:
        >>> from gorp import ModelConfig, load_model
        >>> model, tokenizer = load_model(ModelConfig(path="gorp-tiny-t5"), "cpu")
        >>> model.num_parameters()
        15360504
    """
    folder = locate(config)
    auto, architecture = _auto_class(config, folder)
    tokenizer = load_tokenizer(config)  # after it: an unknown kind of model has no tokenizer either
    vocabulary = getattr(architecture.get_text_config(), "vocab_size", len(tokenizer))
    if len(tokenizer) > vocabulary:
        raise ModelError(
            f"{folder}: the tokenizer knows {len(tokenizer)} tokens, the model {vocabulary}. They do not belong "
            "together; save the model's own tokenizer beside it."
        )
    check_quantization(folder, architecture)
    try:
        model, loading = auto.from_pretrained(
            folder,
            config=architecture,
            dtype="auto" if config.dtype == "auto" else getattr(torch, config.dtype),
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    except Exception as error:  # damaged files, missing packages
        raise ModelError(f"{folder}: the model cannot be loaded ({_first_line(error)}).") from error
    check_loading(folder, type(model).__name__, loading)
    model = model.to(device).eval()
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise ModelError(f"{folder}: the weight `{name}` holds values that are not finite. Fetch the model again.")
    if not architecture.is_encoder_decoder and _sees_later_tokens(folder, model, tokenizer):
        raise ModelError(
            f"{folder}: `{architecture.model_type}` ({type(model).__name__}) generates no text: what it says of a "
            "token depends on the tokens behind it, so in training it would see the answer. Wanted a decoder, which "
            "reads from left to right; for a BERT trained as one, `is_decoder: true` in its config.json."
        )
    return model, tokenizer


def skeleton(config: ModelConfig) -> PreTrainedModel:
    """The model's shapes, on the meta device, in training mode. Reads (of a hub model, fetches) `config.json` alone.

    Raises:
        ModelError: If there is no such model, it generates no text, or it could not be trained whatever its weights.
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
    except Exception as error:  # values that fit no model, missing packages
        raise ModelError(f"{folder}: no model can be made from its config.json ({_first_line(error)}).") from error
    return model.train()


def _folder(config: ModelConfig, files: tuple[str, ...]) -> Path:
    """Where the model lies here. Of a hub model only what `files` name is fetched."""
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
    """A snapshot of a hub model in the local cache, of what `files` name at least."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", config.path) or config.path.startswith("."):
        raise ModelError(f"model.path: {config.path}: no such folder, and no hub id either.")
    patterns: list[str] = [*files, "*.py"] if config.trust_remote_code else [*files]
    try:
        return Path(snapshot_download(config.path, revision=config.revision, allow_patterns=patterns))
    except Exception as error:  # network, hub and cache: each has errors of its own
        here = [SHIPPED] if (SHIPPED_FOLDER / SHIPPED).is_dir() else []
        shipped = f"not the shipped model ({here[0] if here else 'there is none'})"
        raise ModelError(
            f"model.path: `{config.path}` is no folder here, {shipped}, and cannot be fetched as a hub "
            f"model ({_first_line(error)}).{nearest(config.path, here)}"
        ) from error


def _auto_class(config: ModelConfig, folder: Path) -> tuple[Any, Any]:
    read_config(folder, trust_remote_code=config.trust_remote_code)
    try:
        architecture = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # unknown model types, damaged JSON
        raise ModelError(
            f"{folder}: its config.json cannot be used ({_first_line(error)}). "
            "Correct it, fetch the model again, or install a version of transformers that knows this kind of model."
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
        f"generates no text. Wanted an encoder-decoder such as T5 or a decoder such as Llama.{advice}"
    )


def _is_encoder(architecture: Any) -> bool:
    """A masked language model that could be turned into a decoder but was not trained as one."""
    generating = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    names = architecture.architectures or []
    return bool(names) and not any(name.endswith(generating) for name in names)


def _sees_later_tokens(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        return sees_later_tokens(model, ordinary_tokens(tokenizer))
    except Exception as error:  # each architecture fails in its own way
        raise ModelError(f"{folder}: the model cannot read a row of tokens ({_first_line(error)}).") from error


def _first_line(error: Exception) -> str:
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {more[0].strip()}" if first.endswith(":") and more else first
