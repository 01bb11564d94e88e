"""Incremental LoRA: a fresh pair for each task, folded into the weights at its end. O-LoRA without its penalty.

W x + s Bₜ Aₜ x,   W ← W + s Bₜ Aₜ after task t                       (Wang et al. 2023, arXiv:2310.14152, IncLoRA)
"""

from typing import final

from gorp.methods.lora import LoraMethod


@final
class IncrementalLora(LoraMethod):
    """No constraint but the small rank of each task's change."""

    name = "incremental_lora"
    title = "a fresh LoRA pair per task, folded at its end"
    paper = "Wang et al. 2023, arXiv:2310.14152 (IncLoRA)"
