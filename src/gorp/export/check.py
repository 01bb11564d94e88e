"""Compare a written folder, read back by plain transformers or PEFT, with the live model.

Both answer the same rows of tokens. The difference is max |a - b| / max |a| over the logits of all rows.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import Module
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from gorp.errors import ExportError
from gorp.evaluation.batches import device_of, evaluating, is_encoder_decoder
from gorp.evaluation.reading import start_tokens, supported
from gorp.export.adapter import PREFIX, read_pairs
from gorp.export.merged import weight_digests
from gorp.layers.names import weight_name
from gorp.models.behaviour import ordinary_tokens


LAST = 16
"""Number of tokens at a row's end whose logits are compared."""

TOLERANCE = {"merged": {torch.float32: 1e-5}, "lora": {torch.float32: 1e-4}}
"""Largest allowed difference. W₀ x + B (A x) is summed in another order than (W₀ + B A) x."""

LOW_PRECISION = {"merged": 1e-2, "lora": 0.1}
"""The same in bfloat16 and float16. The weights of a merged folder must be equal bit for bit all the same."""


def fixed_rows(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return rows of tokens for a model of which no prompts are known."""
    tokens = ordinary_tokens(tokenizer)
    return [tokens, tokens[::-1], tokens[::2]]


def logits_of(model: Module, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the logits after the last `LAST` tokens of every row, one row at a time: LAST x V, float32, on the CPU.

    The decoder of an encoder-decoder gets its start token and the first tokens of the row.
    """
    forward: Any = model
    found = []
    with evaluating(model):
        for row in rows:
            tokens = torch.tensor([row], device=device_of(model))
            if is_encoder_decoder(model):
                start = start_tokens(model, tokens)
                inputs = {"decoder_input_ids": torch.cat([start, tokens[:, : LAST - 1]], dim=1)}
            else:
                inputs = supported(model, use_cache=False)
            output = forward(input_ids=tokens, attention_mask=torch.ones_like(tokens), **inputs).logits
            found.append(output[0, -LAST:].float().cpu())
    return found


def difference(live: Sequence[Tensor], read: Sequence[Tensor]) -> float:
    """Return max |a - b| / max |a| over all rows; NaN if any logit is NaN."""
    # Of tensors: Python's `max` would pass over a NaN.
    largest = torch.stack([row.abs().max() for row in live]).max()
    differences = torch.stack([(a - b).abs().max() for a, b in zip(live, read, strict=True)])
    return (differences.max() / largest.clamp(min=1e-30)).item()


def check_merged(
    folder: Path,
    digests: Mapping[str, str],
    rows: Sequence[Sequence[int]],
    logits: Sequence[Tensor],
    *,
    encoder_decoder: bool,
    device: torch.device,
    trust_remote_code: bool = False,
) -> float:
    """Read a merged folder back with plain transformers, and return the difference of its logits.

    Args:
        folder: The merged model.
        digests: `weight_digests` of the model that was written.
        rows: Rows of tokens.
        logits: Those of the model that was written, on `rows`.
        encoder_decoder: Kind of model.
        device: Where to compute.
        trust_remote_code: Whether code of the model may run.

    Raises:
        ExportError: If a weight differs in one bit, or the logits differ by more than `TOLERANCE`.
    """
    auto: Any = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    try:
        model = auto.from_pretrained(folder, dtype="auto", trust_remote_code=trust_remote_code).to(device).eval()
    except Exception as error:  # each architecture raises errors of its own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportError(
            f"transformers cannot read the written folder back ({reason}). Nothing was exported."
        ) from error
    found = weight_digests(model)
    if wrong := sorted(name for name in {*digests, *found} if digests.get(name) != found.get(name)):
        raise ExportError(
            f"{len(wrong)} weights, for example `{wrong[0]}`, come back from the written files with other values. "
            "Nothing was exported. Is the disk damaged, or does this architecture change weights as it loads?"
        )
    return _checked("merged", difference(logits, logits_of(model, rows)), model.dtype)


@contextmanager
def with_adapter(model: PreTrainedModel, folder: Path, weights: Sequence[str]) -> Iterator[PeftModel]:
    """Yield the base model with the adapter in `folder`, as PEFT reads it; afterwards the base model is as before.

    Raises:
        ExportError: If PEFT puts pairs on other layers than those of `weights`, or changes their values.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is missing or renamed; the pairs are compared below
        peft = PeftModel.from_pretrained(model, str(folder), torch_device=str(model.device))
    try:
        layers = {
            weight_name(name.removeprefix(PREFIX)): module
            for name, module in peft.named_modules()
            if isinstance(module, LoraLayer)
        }
        pairs = read_pairs(folder)
        if set(layers) != set(weights) or set(pairs) != set(weights):
            odd = sorted({*layers, *pairs} ^ set(weights))
            raise ExportError(
                f"nothing was exported: PEFT applies the adapter to other layers than were trained: {odd[:3]}."
            )
        for name, layer in layers.items():
            read: list[Any] = [layer.lora_B["default"].weight, layer.lora_A["default"].weight]
            same = (torch.equal(one.cpu(), other.to(one.dtype)) for one, other in zip(read, pairs[name], strict=True))
            if layer.scaling["default"] != 1 or not all(same):
                raise ExportError(f"nothing was exported: PEFT reads another pair for `{name}` than was written.")
        yield peft.eval()
    finally:
        peft.unload()
        if hasattr(model, "peft_config"):
            del model.peft_config


def check_adapter(expected: Sequence[Tensor], read: Sequence[Tensor], dtype: torch.dtype) -> float:
    """Return the difference of the logits of base + adapter to those of the base model with W₀ + B A as its weights.

    Raises:
        ExportError: If it is more than `TOLERANCE` allows for models of `dtype`.
    """
    return _checked("lora", difference(expected, read), dtype)


def _checked(form: str, found: float, dtype: torch.dtype) -> float:
    allowed = TOLERANCE[form].get(dtype, LOW_PRECISION[form])
    if not found <= allowed:  # also if it is NaN
        raise ExportError(
            f"the folder as read back answers differently from the live model: its logits differ by {found:.1e} of the "
            f"largest; at most {allowed:.0e} is rounding. Nothing was exported."
        )
    return found
