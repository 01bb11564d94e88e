"""Prove that versions are whole and answer as they did: the digests of their files, and their logits bit for bit."""

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from gorp import ModelConfig, Workspace, load_model
from gorp.models.files import base_digests
from gorp.weights.base import BaseWeights
from gorp.workspace.loaded import deltas_of
from gorp.workspace.version import Version
from tests.durability.story import WORDS


def answers(folder: Path) -> dict[str, bytes]:
    """Return the logits of every version of the workspace `bot` in a project, as bytes; empty if there is none.

    Raises:
        CheckpointError: If a file of a version is damaged or missing.
    """
    store = Workspace(folder / "bot")
    found, (sha256, base, tokenizer) = {}, _base(folder / "model")
    for version in store.versions() if store.exists() else ():
        version.verify(sha256)
        found[version.name] = _logits(copy.deepcopy(base), tokenizer, version)
    return found


@functools.cache
def _base(folder: Path) -> tuple[str, Any, Any]:
    """Return the digest of the base model's weights, the model, and its tokenizer."""
    model, tokenizer = load_model(ModelConfig(path=str(folder)), "cpu")
    return base_digests(folder, trust_remote_code=False)["sha256"], model, tokenizer


@torch.no_grad()
def _logits(model: Any, tokenizer: Any, version: Version) -> bytes:
    if deltas := deltas_of(version):
        BaseWeights(model).load(deltas)
    prompts = [f"The light 7 is {word}. Answer:" for words in WORDS.values() for word in words]
    logits = [model(**tokenizer(prompt, return_tensors="pt")).logits for prompt in prompts]
    return save({str(number): each.contiguous() for number, each in enumerate(logits)})
