"""Training of one task: a new Hugging Face Trainer for each task, which calls the method's hooks."""

from gorp.training.checkpoint import last_complete, last_whole
from gorp.training.engine import TaskResult, train_encoded, train_task
from gorp.training.found import SavedModelState, SavedTorchSettings
from gorp.training.preflight import check_arguments, check_method
from gorp.training.settings import training_arguments
from gorp.training.trainer import ContinualSeq2SeqTrainer, ContinualTrainer


__all__ = [
    "ContinualSeq2SeqTrainer",
    "ContinualTrainer",
    "SavedModelState",
    "SavedTorchSettings",
    "TaskResult",
    "check_arguments",
    "check_method",
    "last_complete",
    "last_whole",
    "train_encoded",
    "train_task",
    "training_arguments",
]
