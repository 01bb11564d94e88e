"""The method's part of a Trainer's checkpoint: its state, every trained parameter, and whose checkpoint it is.

    checkpoint-N/protection/trainable.safetensors   each trained parameter, also where PEFT saves only its adapter
    checkpoint-N/protection/method.safetensors      the method's state
    checkpoint-N/protection/complete.json           the training that it belongs to, the step, SHA-256 of both files

The folder is written before the Trainer's last file, trainer_state.json, and before an upload of the checkpoint. The
optimizer, the schedule and the random state are in the Trainer's files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gorp.errors import CheckpointError
from gorp.methods.base import Method
from gorp.storage import file_sha256, read_json, write_json
from gorp.training.checkpoint import COMPLETE, load_checkpoint, save_checkpoint


FOLDER = "protection"
FILES = ("trainable.safetensors", "method.safetensors")


def save_part(checkpoint: Path, model: nn.Module, method: Method, *, training: Mapping[str, Any], step: int) -> None:
    """Write the method's part of a checkpoint.

    Args:
        checkpoint: The Trainer's folder; it need not exist yet.
        model: The base model with the task's layers.
        method: The method, within the task.
        training: What identifies the training of this task: its folder, its number, its parent, its start.
        step: Finished optimizer steps.
    """
    folder = checkpoint / FOLDER
    (folder / COMPLETE).unlink(missing_ok=True)  # of an earlier training in the same output folder
    save_checkpoint(folder, model, method)
    digests = {name: file_sha256(folder / name) for name in FILES}
    write_json(folder / COMPLETE, {"training": dict(training), "step": step, "sha256": digests})


def load_part(checkpoint: Path, model: nn.Module, method: Method, *, training: Mapping[str, Any], step: int) -> None:
    """Load the method's part of a checkpoint that the Trainer has resumed from.

    Args:
        checkpoint: The Trainer's folder.
        model: The base model, after `begin_task` and `begin_training`.
        method: The method.
        training: As for `save_part`, of the task that is being trained now.
        step: The step that the Trainer resumed at.

    Raises:
        CheckpointError: If the part is missing or damaged, or belongs to another task or another version; the message
            says which was meant.
    """
    folder = checkpoint / FOLDER
    if not (folder / COMPLETE).is_file():
        raise CheckpointError(
            f"{checkpoint}: training resumed at step {step}, but this checkpoint has no part of Protection. It was "
            "written without it, or lies in another folder than output_dir. Resume from a checkpoint of this task in "
            "output_dir; or, for a new task, do not resume: call trainer.train() without resume_from_checkpoint."
        )
    complete = read_json(folder / COMPLETE)
    found = complete.get("training") if isinstance(complete, dict) else None
    if not isinstance(found, dict) or complete.get("step") != step:
        raise CheckpointError(f"{folder / COMPLETE}: damaged, or of another step than {step}. Resume from another one.")
    check_training(checkpoint, found, training)
    if found.get("training") != training["training"]:
        raise CheckpointError(
            f"{checkpoint}: its files are of two trainings of task `{training['task']}`: one was stopped while it "
            "wrote over the other's checkpoint. Resume from another checkpoint, or start the task again with another "
            "output_dir."
        )
    for name, digest in complete["sha256"].items():
        if name not in FILES or file_sha256(folder / name) != digest:
            raise CheckpointError(
                f"{folder / name}: damaged; its SHA-256 is not the one in {COMPLETE}. Resume from another checkpoint."
            )
    load_checkpoint(folder, model, method)


def check_output_dir(folder: Path, training: Mapping[str, Any]) -> None:
    """Raise if a Trainer's output folder has checkpoints that this training cannot resume from.

    The Trainer resumes from the checkpoint with the most steps, whichever training wrote it, and loads its weights and
    its optimizer before any callback is called.

    Args:
        folder: `output_dir`; it need not exist.
        training: As for `save_part`; the random name of its start is not compared.

    Raises:
        CheckpointError: The message names the checkpoint and what to do.
    """
    for checkpoint in sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
        whole = (checkpoint / TRAINER_STATE_NAME).is_file()
        if not (checkpoint / FOLDER / COMPLETE).is_file() or not whole:
            why = "was written without Protection" if whole else "is incomplete: a process ended while it wrote it"
            raise CheckpointError(
                f"{checkpoint}: {why}, so task `{training['task']}` cannot resume from it. Delete it, or give this "
                "task another output_dir."
            )
        complete = read_json(checkpoint / FOLDER / COMPLETE)
        check_training(checkpoint, complete.get("training", {}) if isinstance(complete, dict) else {}, training)


def check_training(checkpoint: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise if a checkpoint belongs to another training than the one that is being continued.

    Raises:
        CheckpointError: The message says which task and version each of the two has.
    """
    here = f"task {wanted['index']} (`{wanted['task']}`), which starts from {wanted['parent']}"
    there = f"task {found.get('index')} (`{found.get('task')}`), which started from {found.get('parent')}"
    if found.get("index") != wanted["index"] or found.get("task") != wanted["task"]:
        done = isinstance(found.get("index"), int) and found["index"] < wanted["index"]
        raise CheckpointError(
            f"{checkpoint}: belongs to {there}, but this is {here}. Give this task another output_dir. "
            + (
                "The folder has that task already; it is finished. A next task does not resume: if you asked for that, "
                "call trainer.train() without resume_from_checkpoint."
                if done
                else "Resume it with the Protection that has this task's name."
            )
        )
    if found.get("parent_sha256") != wanted["parent_sha256"]:
        raise CheckpointError(
            f"{checkpoint}: belongs to {there}, but to another version of that name than the folder has now "
            f"({wanted['folder']}). Resume with the folder that the training began with, or start the task again: "
            "call trainer.train() without resume_from_checkpoint."
        )
