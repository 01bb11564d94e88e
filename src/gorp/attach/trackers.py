"""Send `cl/...` metrics to the trackers that `report_to` names: TensorBoard, W&B, MLflow, trackio, ...

A callback cannot log through the Trainer, and its metrics come after the trackers' callbacks have had theirs. So each
tracker gets a second object of Hugging Face's own integration, which writes into the run that the Trainer's has opened.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, get_reporting_integration_callbacks


class Trackers:
    """The trackers of one training.

    Args:
        args: The Trainer's arguments, when its own trackers have begun.
    """

    def __init__(self, args: TrainingArguments) -> None:
        classes = get_reporting_integration_callbacks(args.report_to)
        self._classes = [cls for cls in classes if cls.on_log is not TrainerCallback.on_log]
        self._open: list[Any] | None = None  # made at the first metric, so that a run without any opens nothing

    def log(self, metrics: Mapping[str, float], args: TrainingArguments, state: Any, control: Any) -> None:
        """Send numbers to every tracker."""
        if self._open is None:
            self._open = [cls() for cls in self._classes]
            for tracker in self._open:
                if isinstance(tracker, TensorBoardCallback) and tracker.logging_dir is None:
                    tracker.logging_dir = _newest_run(Path(str(args.output_dir)))
        for tracker in self._open:
            tracker.on_log(args, state, control, logs=dict(metrics))
            if writer := getattr(tracker, "tb_writer", None):
                writer.flush()


def _newest_run(folder: Path) -> str | None:
    """Return the folder in `output_dir` that TensorBoard's callback has begun last; its name has the time in it."""
    runs = [path for path in (folder / "runs").glob("*") if path.is_dir()]
    return str(max(runs, key=os.path.getmtime)) if runs else None
