"""From a checkpoint to a model folder that plain transformers reads."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from gorp.errors import CheckpointError
from gorp.storage import read_json, write_atomic
from scripts.pretrain import checkpoint
from scripts.pretrain.card import model_card
from scripts.pretrain.models import MAX_LENGTH, build
from scripts.pretrain.objective import Objective
from scripts.pretrain.picture import perplexity_picture
from scripts.pretrain.stream import to_unit_embeddings
from scripts.pretrain.teacher import Teacher
from scripts.pretrain.tokenizer import BOS_ID, EOS_ID, PAD_ID, for_model, load


def export(run: Path, target: Path) -> dict[str, Any]:
    """Write model, tokenizer, generation settings and model card; bfloat16 weights in safetensors.

    The folder is filled file by file, each atomically, so that an older export in the same place stays readable.

    Args:
        run: Folder of the run; it may still be training.
        target: The model folder.

    Returns:
        The newest entry of the held-out curve.

    Raises:
        CheckpointError: The run has no checkpoint yet.
    """
    told = read_json(run / "run.json")
    packed = Path(told["packed"])
    tokenizer = load(packed)
    encoder = Teacher(told["encoder"]["source"])
    model = build(told["architecture"], told["seed"], encoder.model.config, tokenizer.get_vocab_size())
    progress = checkpoint.load(run, Objective(model, encoder.width))
    if progress is None:
        raise CheckpointError(f"{run} holds no {checkpoint.FILE}; train until the first checkpoint, then export.")
    to_unit_embeddings(model)
    model = model.to(torch.bfloat16).eval()
    special: dict[str, Any] = {"pad_token_id": PAD_ID, "eos_token_id": EOS_ID, "max_new_tokens": 50}
    special |= {"decoder_start_token_id": PAD_ID} if told["architecture"] == "t5" else {"bos_token_id": BOS_ID}
    model.generation_config = GenerationConfig(**special)
    target.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        model.save_pretrained(folder)
        _prefer_attention(Path(folder) / "config.json")
        for_model(tokenizer, told["architecture"], MAX_LENGTH).save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            write_atomic(target / file.name, file.read_bytes())
    counts = read_json(packed / "counts.json")
    weights = sum(weight.numel() for weight in model.parameters())
    text = model_card(target.name, told, progress.curve, model.config, weights, counts)
    write_atomic(target / "README.md", text.encode())
    write_atomic(target / "curve.svg", perplexity_picture(progress.curve).encode())
    write_atomic(target / "curve.json", (json.dumps(progress.curve, indent=1) + "\n").encode())
    return progress.curve[-1]


def _prefer_attention(config: Path) -> None:
    """Make `from_pretrained` choose plain attention, unless it is told otherwise.

    At this size, in bfloat16 on a CPU, torch's fused attention takes a third of a training step.
    """
    told = json.loads(config.read_text()) | {"attn_implementation": "eager"}
    config.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
