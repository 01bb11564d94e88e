"""Explain errors that stop training: known causes with advice, any other error with the step and the task."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from gorp.errors import GorpError, TrainingError


KEPT = "Earlier versions and the last checkpoint are unchanged; nothing after them was kept."


@contextmanager
def explained(task: str, step: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Turn errors with a known cause into a `TrainingError`, and add a note with step and task to any other error.

    Args:
        task: Name of the task.
        step: Returns the number of the running step and the number of all steps.

    Raises:
        TrainingError: If memory is full, or a process that loads rows was killed.
    """
    try:
        yield
    except GorpError:
        raise
    except Exception as error:
        number, total = step()
        where = f"at step {number} of {total} of task `{task}`"
        cause = _cause(error)
        if cause is None:
            error.add_note(f"This happened {where}. {KEPT}")
            raise
        raise TrainingError(f"{cause[0]} {where} ({_first_line(error)}). {KEPT} {cause[1]}") from error


def _cause(error: Exception) -> tuple[str, str] | None:
    """Return what happened and what to do about it, or None if the cause is not known."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return (
            "memory ran out",
            "Lower training.per_device_train_batch_size and raise training.gradient_accumulation_steps by the same "
            "factor, set training.gradient_checkpointing, or lower encoding.max_prompt_tokens; `gorp estimate` "
            "predicts the memory.",
        )
    if "DataLoader worker" in text:
        return "a process that loads rows ended", "Lower training.dataloader_num_workers; 0 loads in this process."
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
