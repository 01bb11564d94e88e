"""Merge a version into its base model and write it as a plain Hugging Face folder.

W = round(W₀ + delta)        summed in float32, then rounded to the export's dtype; round(W₀) where nothing changed
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from gorp.models.files import TOKENIZER_FILES, TOKENIZER_MORE
from gorp.weights.base import BaseWeights
from gorp.weights.delta import WeightDelta


@torch.no_grad()
def merge(
    model: PreTrainedModel, weights: BaseWeights, deltas: Mapping[str, WeightDelta], dtype: torch.dtype | None
) -> None:
    """Set every parameter of `model` to round(W₀ + delta), in place.

    W₀ is that of the model as it was loaded, in the dtype that it was trained with; only the sum is rounded to `dtype`.
    Parameters that the architecture keeps in a wider dtype than the model's (`_keep_in_fp32_modules`) stay as they are.

    Args:
        model: The base model.
        weights: Its W₀; must have been made from `model` before anything changed.
        deltas: Name of a parameter -> its delta.
        dtype: Dtype of the export; None for that of the model.
    """
    for name in deltas:
        weights.base(name)  # copies W₀ before the parameter is converted
    own = model.dtype
    for parameter in model.parameters():
        if dtype is not None and parameter.dtype == own:
            parameter.data = parameter.data.to(dtype)
    weights.load(deltas)


def write_merged(model: PreTrainedModel, base: Path, folder: Path, *, code: bool = False) -> None:
    """Write the model's weights, config.json and generation_config.json, and copy the tokenizer of the base model.

    The tokenizer's files are copied, not saved again, so that the export has the base model's bytes.

    Args:
        model: A merged model.
        base: Folder of the base model.
        folder: Where to write; it exists.
        code: Whether the model runs Python code of its own, which is copied too.
    """
    model.save_pretrained(folder)
    copy_tokenizer(base, folder)
    for path in base.glob("*.py") if code else ():
        shutil.copyfile(path, folder / path.name)


def copy_tokenizer(base: Path, folder: Path) -> None:
    """Copy the files of the base model's tokenizer and its chat templates."""
    for pattern in (*TOKENIZER_FILES, *TOKENIZER_MORE, "chat_template*", "additional_chat_templates/*"):
        for path in base.glob(pattern):
            if path.is_file():
                target = folder / path.relative_to(base)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)


def weight_digests(model: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of dtype, shape and bytes of every parameter, by its name in the `state_dict`.

    Two models of one architecture are equal bit for bit if these are equal; only one of them must be in memory.
    """
    digests = {}
    for name, tensor in model.named_parameters():
        header = f"{tensor.dtype} {tuple(tensor.shape)}\n".encode()
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digests[name] = hashlib.sha256(header + content.tobytes()).hexdigest()
    return digests
