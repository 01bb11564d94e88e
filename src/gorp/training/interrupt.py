"""Ctrl-C or SIGTERM during training: the running optimizer step ends, is saved, and only then is training left.

The first signal asks for a checkpoint, the second leaves at once, as Python always does. Several ranks get the signal
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

from gorp.termination import Terminated, raise_terminated


UNCAUGHT: dict[int, tuple[Any, ...]] = {
    signal.SIGINT: (signal.default_int_handler,),
    signal.SIGTERM: (signal.SIG_DFL, raise_terminated),
}
"""The handlers of each signal that may be replaced; any other is somebody's own."""

AT_ONCE: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: raise_terminated}


class SaveOnInterrupt(TrainerCallback):
    """Saves at the end of the step in which a signal came, and leaves with KeyboardInterrupt, or with Terminated.

    Args:
        task: Name of the task, for messages.
        say: Told in a line that a checkpoint will be written first.
    """

    def __init__(self, task: str, say: Callable[[str], None]) -> None:
        self.task, self.say = task, say
        self.asked: int | None = None
        """The signal that came."""
        self._saved = ""

    @contextmanager
    def listening(self, arguments: TrainingArguments) -> Iterator[None]:
        """While training: each signal that nobody else catches or ignores is caught, if this is the main thread.

        Raises:
            KeyboardInterrupt: If a signal came after the last step, when no step was left to save.
        """
        main = threading.current_thread() is threading.main_thread()
        previous = {number: signal.getsignal(number) for number in UNCAUGHT}
        caught = {number: handler for number, handler in previous.items() if handler in UNCAUGHT[number]}
        if not main or not caught or arguments.save_strategy == SaveStrategy.NO or arguments.world_size > 1:
            yield
            return
        for number in caught:
            signal.signal(number, self._ask)
        try:
            yield
        finally:
            for number, handler in caught.items():
                signal.signal(number, handler)
        if self.asked is not None:
            self._leave()

    def _ask(self, number: int, _: Any) -> None:
        for other in UNCAUGHT:
            if signal.getsignal(other) == self._ask:
                signal.signal(other, AT_ONCE[other])  # the second one leaves at once
        self.asked = number
        with suppress(RuntimeError):  # Python refuses to write a line in the middle of writing another
            self.say("interrupted: this step is finished and saved first; press Ctrl-C again to quit now")

    def _leave(self) -> None:
        raise (Terminated if self.asked == signal.SIGTERM else KeyboardInterrupt)(self._saved)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the Trainer for a checkpoint."""
        if self.asked is not None:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave, now that the checkpoint is whole."""
        self._saved = f"Step {state.global_step} of {state.max_steps} of task {self.task} is saved."
        if self.asked is not None:
            self._leave()
