"""Sequential LoRA: one adapter, trained on every task in turn. Hu et al. 2021, arXiv:2106.09685.

W₀ x + s B A x,   the same A and B from the first task to the last
"""

from typing import final

from gorp.methods.lora import SharedLoraMethod


@final
class SequentialLora(SharedLoraMethod):
    """What most people do: go on training the adapter there is."""

    name = "sequential_lora"
    title = "one LoRA adapter, trained on task after task"
    paper = "Hu et al. 2021, arXiv:2106.09685"
