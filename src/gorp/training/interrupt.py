"""Ctrl-C during training: the running optimizer step ends, is saved, and only then is training left.

The first SIGINT asks for a checkpoint, the second leaves at once, as Python always does. Several ranks get the signal
at different steps and would wait for each other for ever, so there, and where nothing is to be saved, it leaves at
once too.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy


class SaveOnInterrupt(TrainerCallback):
    """Saves at the end of the step in which SIGINT came, and leaves with KeyboardInterrupt.

    Args:
        task: Name of the task, for messages.
        say: Told in a line that a checkpoint will be written first.
    """

    def __init__(self, task: str, say: Callable[[str], None]) -> None:
        self.task, self.say = task, say
        self.asked = False
        self._saved = ""

    @contextmanager
    def listening(self, arguments: TrainingArguments) -> Iterator[None]:
        """While training: SIGINT is caught, if this is the main thread and nobody else catches or ignores it.

        Raises:
            KeyboardInterrupt: If SIGINT came after the last step, when no step was left to save.
        """
        previous = signal.getsignal(signal.SIGINT)
        if (
            previous is not signal.default_int_handler
            or threading.current_thread() is not threading.main_thread()
            or arguments.save_strategy == SaveStrategy.NO
            or arguments.world_size > 1
        ):
            yield
            return
        signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
        if self.asked:
            raise KeyboardInterrupt(self._saved)

    def _ask(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one leaves at once
        self.asked = True
        with suppress(RuntimeError):  # Python refuses to write a line in the middle of writing another
            self.say("interrupted: this step is finished and saved first; once more leaves at once")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the Trainer for a checkpoint."""
        if self.asked:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave, now that the checkpoint is whole."""
        self._saved = f"Step {state.global_step} of {state.max_steps} of task {self.task} is saved."
        if self.asked:
            raise KeyboardInterrupt(self._saved)
