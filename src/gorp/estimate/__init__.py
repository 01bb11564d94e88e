"""Predict memory, time and kept bytes of a run from the shapes of its model, before it is started.

ledger.py    count what torch code costs, operation by operation
shapes.py    run a training step on tensors without data
device.py    how fast a device is, measured or given
predict.py   the estimate for a YAML: its method beside LoRA and full fine-tuning
wording.py   the estimate as lines of a table
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
