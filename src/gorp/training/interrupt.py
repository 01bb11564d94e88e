"""Ctrl-C or SIGTERM during training: finish the running optimizer step, save a checkpoint, then stop.

The first signal requests a checkpoint; the second stops at once, as Python does by default. With several ranks, the
signal arrives at different steps and the ranks would wait for each other for ever; so with several ranks, or if the run
saves no checkpoints, the first signal stops at once too.
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
"""Default handlers of each signal. Only these are replaced; any other handler was set by the caller and stays."""

AT_ONCE: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: raise_terminated}


class SaveOnInterrupt(TrainerCallback):
    """Saves a checkpoint at the end of the step in which a signal came, then raises KeyboardInterrupt or Terminated.

    Args:
        task: Name of the task, for messages.
        say: Called with a line of text when the first signal comes.
    """

    def __init__(self, task: str, say: Callable[[str], None]) -> None:
        self.task, self.say = task, say
        self.asked: int | None = None
        """Number of the signal that came, or None."""
        self._saved = ""

    @contextmanager
    def listening(self, arguments: TrainingArguments) -> Iterator[None]:
        """Handle, inside this context, each signal that still has its default handler. Only in the main thread.

        Raises:
            KeyboardInterrupt: If a signal came after the last step, when there was no step left to save. (For SIGTERM
                its subclass `Terminated`.)
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
                signal.signal(other, AT_ONCE[other])  # a second signal stops at once
        self.asked = number
        with suppress(RuntimeError):  # Python raises it if the signal comes while another line is being written
            self.say("interrupted: finishing and saving this step first; press Ctrl-C again to quit now")

    def _leave(self) -> None:
        raise (Terminated if self.asked == signal.SIGTERM else KeyboardInterrupt)(self._saved)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Request a checkpoint from the Trainer."""
        if self.asked is not None:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop training, now that the checkpoint is complete."""
        self._saved = f"Step {state.global_step} of {state.max_steps} of task {self.task} is saved."
        if self.asked is not None:
            self._leave()
