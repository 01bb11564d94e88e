"""Multi-task training: one LoRA run on the union of all tasks. Not continual: the upper bound of every table."""

from typing import final

from gorp.lora_method import LoraMethod


@final
class MultiTask(LoraMethod):
    """All tasks at once, shuffled together, the same number of epochs."""

    name = "multi_task"
    title = "one LoRA run on all tasks together (upper bound)"
    paper = "Caruana 1997, Machine Learning 28"
    keeps = "needs the data of every task"
    joint = True
