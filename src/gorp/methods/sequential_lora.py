"""Sequential LoRA: one adapter, trained on every task in turn. Hu et al. 2021, arXiv:2106.09685.

W₀ x + s B A x,   with the same A and B from the first task to the last
"""

from typing import final

from gorp.methods.lora import SharedLoraMethod


@final
class SequentialLora(SharedLoraMethod):
    """Continues to train one adapter on each new task: the usual practice."""

    name = "sequential_lora"
    title = "one LoRA adapter, trained on one task after another"
    paper = "Hu et al. 2021, arXiv:2106.09685"
