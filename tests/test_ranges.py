"""Every number of the configuration declares a range, and values outside it are refused."""

import math
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from gorp.data import Encoding, TaskSpec
from gorp.errors import ConfigError
from gorp.evaluation import EvalConfig
from gorp.layers.lora import LoraSettings
from gorp.methods import METHODS
from gorp.ranges import Range, ranges


BLOCKS = [*(method.Config for method in METHODS.values()), LoraSettings, Encoding, EvalConfig, TaskSpec]
NEEDED = {TaskSpec: {"name": "t", "train": "t.jsonl"}}
NUMBERS = [
    (cls, field.name)
    for cls in dict.fromkeys(BLOCKS)
    for field in fields(cls)
    if {int, float} & {get_type_hints(cls)[field.name], *get_args(get_type_hints(cls)[field.name])}
]


@pytest.mark.parametrize(("cls", "name"), NUMBERS, ids=lambda part: getattr(part, "__name__", part))
def test_every_number_declares_a_range_and_refuses_values_outside(cls, name):
    allowed = ranges(cls)[name]
    whole = int in {get_type_hints(cls)[name], *get_args(get_type_hints(cls)[name])}
    outside = [allowed.low - 1, math.inf, -math.inf, math.nan]
    outside += [allowed.low] if allowed.open_low else []
    outside += [] if math.isinf(allowed.high) else [allowed.high + 1]
    for value in outside:
        with pytest.raises(ConfigError, match=rf"{name} is {value}; it must be (at least|above) {allowed.low}"):
            cls(**NEEDED.get(cls, {}), **{name: value})
    good = [allowed.low] if not allowed.open_low else [1 if whole else 0.5]
    for value in good:
        assert getattr(cls(**NEEDED.get(cls, {}), **{name: value}), name) == value


def test_ranges_print_and_contain_as_written_by_hand():
    assert str(Range(0, 1, open_high=True)) == "at least 0 and below 1"
    assert str(Range(0, open_low=True)) == "above 0"
    assert 1 in Range(0, 1) and 1 not in Range(0, 1, open_high=True) and 0 not in Range(0, open_low=True)
    assert math.nan not in Range(-math.inf) and math.inf not in Range(0)
