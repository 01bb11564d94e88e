"""The engine: Hugging Face's Trainer, a new one for each task, with a method's seams attached."""

from gorp.training.checkpoint import last_complete, last_whole
from gorp.training.sequence import TaskResult, train_encoded, train_task
from gorp.training.settings import training_arguments
from gorp.training.trainer import ContinualSeq2SeqTrainer, ContinualTrainer


__all__ = [
    "ContinualSeq2SeqTrainer",
    "ContinualTrainer",
    "TaskResult",
    "last_complete",
    "last_whole",
    "train_encoded",
    "train_task",
    "training_arguments",
]
