"""Run a training step without data: on the meta device first, then on tensors that have shapes and a device only.

The model's structure is built on the meta device, where adapters can be added. The step runs on `FakeTensor`s that
report the CPU as their device, so that autocast and attention choose the kernels of a real step.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import swap_tensors
from transformers import PreTrainedModel

from gorp.core.outputs import Answers, Batch, Outputs
from gorp.errors import ModelError
from gorp.methods.base import Method


def check_static(model: PreTrainedModel) -> None:
    """Refuse a model that sends each token to some of its experts: the shapes of its step depend on the data.

    Raises:
        ModelError: It names the experts.
    """
    experts = [name for name, layer in model.named_modules() if type(layer).__name__.endswith("Experts")]
    if experts:
        raise ModelError(
            f"`{model.config.model_type}` cannot be estimated: its router decides which experts a token goes to "
            f"(`{experts[0]}`), so a step cannot be counted from shapes. `gorp train --dry-run` says what would be "
            "trained; for time and memory train a few steps (`max_steps`)."
        )


def make_fake(model: nn.Module, mode: FakeTensorMode, others: Iterable[Tensor] = ()) -> None:
    """Replace the tensors of a meta model, and others that its step needs, by fake ones, keeping their identity."""
    for parameter in list(model.parameters()):
        fake = _fake(parameter, mode).requires_grad_(parameter.requires_grad)
        fake._is_param = True  # what `isinstance(_, nn.Parameter)` asks for; `nn.Parameter` would make a weak reference
        swap_tensors(parameter, fake)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else _fake(buffer, mode)
    for tensor in others:
        swap_tensors(tensor, _fake(tensor, mode))


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    return FakeTensor(mode, torch.empty_like(tensor, device="meta", requires_grad=False), torch.device("cpu"))


def batch_of(model: PreTrainedModel, *, rows: int, prompt: int, answer: int) -> dict[str, Any]:
    """Return token ids, mask and labels of the longest rows there can be, made in the mode that is active.

    An encoder-decoder reads the prompt and answers; a decoder reads both in one row, and has logits for as many
    tokens as the answer's (`gorp.training.answers`) where its forward pass takes `logits_to_keep`. The first row is one
    token short, so that the mask is used, as it is wherever rows differ in length.
    """
    decoder = not model.config.is_encoder_decoder
    mask = torch.ones(rows, prompt + answer if decoder else prompt, dtype=torch.long)
    mask[0, -1] = 0
    batch = {"input_ids": torch.ones_like(mask), "attention_mask": mask}
    if decoder and "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return batch | {"labels": torch.ones_like(mask)}
    fewer = {"logits_to_keep": answer} if decoder else {}
    return batch | {"labels": torch.ones(rows, answer, dtype=torch.long)} | fewer


def forward_and_backward(
    model: nn.Module, batch: dict[str, Any], *, autocast: torch.dtype | None, method: Method | None = None
) -> None:
    """Run one micro-batch of `batch_of`, with the loss term of `method`."""
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        outputs = model(**batch)
        term = None if method is None else method.extra_loss(model, batch, _shown(model, batch, outputs))
        loss = outputs.loss if term is None else outputs.loss + term
    loss.backward()


def _shown(model: nn.Module, batch: dict[str, Any], first: Any) -> Outputs:
    """What a method's loss term is given. Every label of `batch_of` counts, so no logits are picked by their label."""

    def answers(outputs: Any, labels: Tensor) -> Answers:
        return Answers(logits=outputs.logits.flatten(0, -2), labels=labels.flatten())  # K x V, K

    def run(other: Batch) -> Answers:
        return answers(model(**other), other["labels"])

    return Outputs(model, batch, first=lambda: answers(first, batch["labels"]), run=run, weight=lambda: 1.0)
