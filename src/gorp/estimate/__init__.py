"""What a run will need, before it is started: memory, time, and what it keeps, from the shapes of its model alone.

ledger.py    what a piece of code costs, operation by operation
shapes.py    a training step on tensors without data
device.py    how fast a device is, measured or given
kept.py      what gorp carries from task to task
predict.py   all of it for one YAML, gorp or protected_full beside LoRA and full fine-tuning
wording.py   the same as lines of a table
"""

from gorp.estimate.device import Device, device_for, measure_device
from gorp.estimate.ledger import Ledger, SavedTensors
from gorp.estimate.predict import Estimate, predict
from gorp.estimate.wording import headings_of, lines_of


__all__ = [
    "Device",
    "Estimate",
    "Ledger",
    "SavedTensors",
    "device_for",
    "headings_of",
    "lines_of",
    "measure_device",
    "predict",
]
