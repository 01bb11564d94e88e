"""What can stop a training from outside, in words; and where in the training anything else came from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from gorp.errors import GorpError, TrainingError


KEPT = "Earlier versions and the last checkpoint are as they were; nothing after them was kept."


@contextmanager
def explained(task: str, step: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Turn the known causes into errors for a user; any other error gets a note that says in which task it came.

    Args:
        task: Its name.
        step: Tells the running step, and how many there will be.

    Raises:
        TrainingError: When memory or the disk is full, or a process that loads rows was killed.
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
            error.add_note(f"This came {where}. {KEPT}")
            raise
        raise TrainingError(f"{cause[0]} {where} ({_first_line(error)}). {KEPT} {cause[1]}") from error


def _cause(error: Exception) -> tuple[str, str] | None:
    """What happened, and what to do."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return (
            "memory ran out",
            "Lower training.per_device_train_batch_size and raise training.gradient_accumulation_steps by as much, "
            "set training.gradient_checkpointing, or shorten encoding.max_prompt_tokens; `gorp estimate` predicts it.",
        )
    if "DataLoader worker" in text:
        return "a process that loads rows ended", "Lower training.dataloader_num_workers; 0 loads in this process."
    if "PytorchStreamWriter" in text:  # torch's word for a disk that takes no more
        return "a checkpoint could not be written", "Make room on the disk, then give the same command again."
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
