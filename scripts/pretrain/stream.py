"""The scale of the residual stream, which the model's answers do not depend on, but its fine-tuning does.

Every sublayer normalizes what it reads. So with any c the embeddings and all that writes to the stream may be c times
as large, if the last norm before the tied head is c times smaller: the same function, but for the norms' ε. What is
learned afterwards is added in absolute steps. A transplanted stream is small (embeddings of deviation 0.07, the first
layers write with weights of 0.005), so that a few steps of Adam on a writing weight would drown it.
"""

import torch
from transformers import LlamaForCausalLM, PreTrainedModel, T5ForConditionalGeneration


WRITING = (".o.weight", ".wo.weight", ".o_proj.weight", ".down_proj.weight")
"""Ends of the names of weights that write to the stream."""


@torch.no_grad()
def to_unit_embeddings(model: PreTrainedModel) -> None:
    """Scale the stream so that the embeddings have deviation 1, as T5 begins with.

    Args:
        model: A T5 or a Llama with a tied head; changed in place.
    """
    assert isinstance(model, T5ForConditionalGeneration | LlamaForCausalLM) and model.config.tie_word_embeddings
    t5 = isinstance(model, T5ForConditionalGeneration)
    factor = 1 / model.get_input_embeddings().weight.std()
    model.get_input_embeddings().weight.mul_(factor)
    for name, weight in model.named_parameters():
        if name.endswith(WRITING):
            weight.mul_(factor)
    last = model.decoder.final_layer_norm if t5 else model.model.norm
    last.weight.div_(factor)
