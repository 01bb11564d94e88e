"""Progress lines of a long run in a log: regular, but not one for each step."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from gorp.cli import live as module
from gorp.cli.console import PLAIN_WIDTH
from gorp.cli.live import PlainProgress
from gorp.layers.targets import Treatment
from tests.report.matrices import matrix


@pytest.fixture
def log(monkeypatch):
    """The progress, the stream it writes to, and the clock."""
    text, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return PlainProgress(Console(file=text, width=PLAIN_WIDTH)), text, clock


def test_quick_scoring_prints_nothing(log):
    progress, text, clock = log
    with progress.evaluating("v1 on one") as advance:
        for done in (1, 2, 3):
            clock[0] += 0.5
            advance(done, 3)
    assert text.getvalue() == ""


def test_long_scoring_prints_a_line_after_two_seconds_and_then_every_ten(log):
    progress, text, clock = log
    with progress.evaluating("v1 on one") as advance:
        for done in range(1, 31):  # a second each
            clock[0] += 1
            advance(done, 30)
    lines = text.getvalue().splitlines()
    assert lines == [f"scoring v1 on one: {done} of 30 rows, about {30 - done} s left" for done in (2, 12, 22)]


def test_training_prints_its_steps_and_loss_every_ten_seconds(log):
    progress, text, clock = log
    with progress.training("one") as callback:
        for step in range(31):
            clock[0] += 1
            callback.on_step_end(None, SimpleNamespace(global_step=step, max_steps=30), None)
            callback.on_log(None, None, None, logs={"loss": 0.5})
    lines = text.getvalue().splitlines()
    assert lines[0] == "training one" and lines[-1] == "trained one: 30 steps, loss 0.5"
    assert lines[1:-1] == [f"training one: {step} of 30 steps, loss 0.5" for step in (1, 11, 21)]


def test_the_table_of_trained_layers_is_printed_when_it_changes(log):
    progress, text, _ = log
    table = [Treatment(pattern="a.*.q A", count=1, shape=(2, 2), treatment="LoRA", trainable=4)]
    for _ in range(3):
        progress.treatments(table, 100)
    assert text.getvalue().count("trainable parameters") == 1
    progress.treatments(table * 2, 100)
    assert text.getvalue().count("trainable parameters") == 2


def test_the_table_of_trained_layers_has_a_line_for_each_kind_of_layer(log):
    progress, text, _ = log
    shapes = {"block.*.self.q A": (4, 6), "block.*.self.q B": (6, 4), "block.*.cross.q C": (2, 2), "norm.weight": (6,)}
    kinds = {"A": "LoRA", "B": "LoRA", "C": "core"}
    made = [
        Treatment(pattern=p, count=3, shape=s, treatment=kinds.get(p[-1], "full"), trainable=10)
        for p, s in shapes.items()
    ]
    progress.treatments(made, 1000)
    assert [line.split() for line in text.getvalue().splitlines()[2:]] == [
        ["q", "LoRA,", "core", "6", "30"],
        ["norm", "full", "3", "10"],
    ]


def test_after_a_task_every_learned_task_has_a_line(log):
    progress, text, _ = log
    nan = float("nan")
    progress.matrix(matrix([[10, 20], [nan, nan], [nan, nan]], ("a", "b")))
    progress.matrix(matrix([[10, 20], [50, 25], [40, 60]], ("a", "b")))
    assert text.getvalue().splitlines() == [
        "base model scores: a 10.0, b 20.0",
        "  a: 40.0, lost 10.0 since it was learned",
        "  b: 60.0, just learned",
    ]
