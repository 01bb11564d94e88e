"""Joint LoRA: one LoRA run on the rows of all tasks together. It is not continual: it needs the data of every task."""

from typing import final

from gorp.methods.lora import LoraMethod


@final
class MultiTask(LoraMethod):
    """Trains on the shuffled rows of all tasks at once, for the same number of epochs."""

    name = "multi_task"
    title = "joint LoRA: one adapter trained on all tasks together"
    paper = "Caruana 1997, Machine Learning 28"
    keeps = "needs the data of every task"
    joint = True
