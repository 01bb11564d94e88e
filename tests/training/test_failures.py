"""A known cause becomes an error for a user; an unknown one keeps its traceback and says in which task it came."""

import pytest
import torch

from gorp.errors import ConfigError, TrainingError
from gorp.training.failures import explained


def fail(error: BaseException) -> None:
    with explained("oct", lambda: (3, 8)):
        raise error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory ran out .*gradient_checkpoint"),
        (MemoryError(), "memory ran out at step 3 of 8 of task `oct`"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory ran out"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "dataloader_num_workers"),
    ],
)
def test_a_known_cause_says_where_and_what_to_do(error, message):
    with pytest.raises(TrainingError, match=message) as caught:
        fail(error)
    assert caught.value.__cause__ is error


def test_an_unknown_one_is_itself_with_a_note():
    with pytest.raises(ZeroDivisionError) as caught:
        fail(ZeroDivisionError("x"))
    assert "at step 3 of 8 of task `oct`" in caught.value.__notes__[0]


@pytest.mark.parametrize("error", [ConfigError("x"), KeyboardInterrupt("Step 3 of 8 of task oct is saved.")])
def test_our_own_and_interruptions_pass(error):
    with pytest.raises(type(error)) as caught:
        fail(error)
    assert caught.value is error and not hasattr(error, "__notes__")
