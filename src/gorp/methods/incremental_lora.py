"""Incremental LoRA: a new pair for each task, merged into the weights at its end. It is O-LoRA without the penalty.

W x + s Bₜ Aₜ x,   W ← W + s Bₜ Aₜ after task t                       (Wang et al. 2023, arXiv:2310.14152, IncLoRA)
"""

from typing import final

from gorp.methods.lora import LoraMethod


@final
class IncrementalLora(LoraMethod):
    """A new LoRA pair per task, with no constraint except the rank."""

    name = "incremental_lora"
    title = "a new LoRA pair per task, merged into the weights at the task's end"
    paper = "Wang et al. 2023, arXiv:2310.14152 (IncLoRA)"
