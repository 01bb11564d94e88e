"""A run that was cut off and resumed is the run that was not, bit for bit.

The second of two tasks is cut off; then everything is made anew, as in a new process: model, method, optimizer. The
method comes from the file it was saved to after task 1, the rest from the task's last checkpoint.
"""

import signal
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from gorp.layers.lora import LoraSettings
from gorp.methods import METHODS
from gorp.termination import Terminated
from tests.runs import Kill, Killed, assert_equal, fresh, through_a_file, tiny, train


LORA_ONLY = {"full_modules": "none"}
VARIANTS = {name: (name, {}) for name in METHODS} | {
    "gorp paper": ("gorp", {"mode": "paper"}),
    "gorp paper sketch": ("gorp", {"mode": "paper", "memory_source": "sketch"}),
    "gorp moment": ("gorp", {"memory_source": "moment"}),
    "gorp small sketch": ("gorp", {"sketch_size": 5}),
    "gorp lora only": ("gorp", LORA_ONLY),
    "gorp slow": ("gorp", {"refresh_every": 50}),  # many layers have no frame yet when the run is cut off
}
KINDS = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    "autocast": (torch.float32, {"bf16": True}),
}
STEPS = 8
INSIDE_AN_EPOCH = {"5 steps": (5, {"max_steps": 5}), "one and a half epochs": (6, {"num_train_epochs": 1.5})}
"""Tasks that end in the middle of an epoch of 4 steps; the first number is how many they take."""
KINDS |= {name: (torch.float32, training) for name, (_, training) in INSIDE_AN_EPOCH.items()}
NAMED = (
    "gorp",
    "protected_full",
    "sequential_full",
    "sequential_lora",
    "incremental_lora",
    "ewc",
    "olora",
    "multi_task",
)
"""Methods whose fast cases are written out; every other has one."""
CUTS = (0, 1, 3, 4, 8)  # nothing done; before, in and after a second refresh; nothing left but the end


def build(variant: str, family: str, dtype: torch.dtype):
    name, options = VARIANTS[variant]
    model = tiny(family, dropout=0.1, dtype=dtype)
    lora = LoraSettings(r=4, lora_dropout=0.1) if METHODS[name].uses_lora else None
    return model, fresh(name, model, lora=lora, **options)


def all_steps(kind: str) -> int:
    return INSIDE_AN_EPOCH[kind][0] if kind in INSIDE_AN_EPOCH else STEPS


@cache
def unbroken(variant: str, family: str, kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The method's state after task 1, and the model and method after task 2."""
    dtype, training = KINDS[kind]
    model, method = build(variant, family, dtype)
    with TemporaryDirectory() as folder:
        train(model, method, 1, Path(folder), **training)
        between = {name: x.clone() for name, x in method.state_dict().items()}
        result = train(model, method, 2, Path(folder), **training)
    assert result.steps == all_steps(kind)
    return between, {name: x.clone() for name, x in model.state_dict().items()}, method.state_dict()


def broken(variant: str, family: str, kind: str, cut: Kill, folder: Path):
    """The same, cut off in task 2 and resumed with everything made anew."""
    dtype, training = KINDS[kind]
    training = training | {"save_strategy": "steps", "save_steps": 1}
    between = through_a_file(unbroken(variant, family, kind)[0], folder / "method.safetensors")
    for attempt in (cut, None):
        model, method = build(variant, family, dtype)
        method.load_state_dict(between)
        if attempt is None:
            result = train(model, method, 2, folder / "run", **training)
            return result, model.state_dict(), method.state_dict()
        with pytest.raises(Killed):
            train(model, method, 2, folder / "run", callbacks=(attempt,), **training)
    raise AssertionError


def check(variant: str, family: str, kind: str, cut: Kill, folder: Path) -> None:
    _, weights, state = unbroken(variant, family, kind)
    result, resumed_weights, resumed_state = broken(variant, family, kind, cut, folder)
    assert result.resumed_at == cut.steps - cut.unsaved
    assert result.steps == all_steps(kind)
    assert_equal(resumed_weights, weights)
    assert_equal(resumed_state, state)


def slowly(*cases):
    """Mark the cases of a parametrized test as slow."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("variant", "family", "kind", "steps"),
    [
        *[("gorp", "t5", "float32", steps) for steps in (2, 3, 4)],  # before, in and after a refresh
        ("gorp", "llama", "bfloat16", 5),
        ("gorp paper", "t5", "float32", 3),
        ("protected_full", "llama", "bfloat16", 3),
        ("ewc", "llama", "bfloat16", 4),
        *slowly(
            ("gorp", "t5", "autocast", 3),
            ("gorp", "llama", "float32", 8),  # nothing is left but the end of the task
            ("gorp paper", "llama", "bfloat16", 4),
            ("gorp paper sketch", "llama", "float32", 4),
            ("gorp small sketch", "llama", "bfloat16", 4),
            ("gorp lora only", "llama", "float32", 5),
            ("gorp slow", "t5", "float32", 2),
            ("protected_full", "t5", "float32", 4),
            ("sequential_full", "llama", "bfloat16", 3),
            ("sequential_lora", "t5", "float32", 1),
            ("incremental_lora", "llama", "autocast", 5),
            ("olora", "t5", "bfloat16", 6),
            ("multi_task", "llama", "float32", 7),
            *[(name, "llama", "float32", 3) for name in METHODS if name not in NAMED],
        ),
    ],
)
def test_resumes_to_the_same_bits(variant, family, kind, steps, tmp_path):
    check(variant, family, kind, Kill(steps), tmp_path)


def test_a_step_that_was_not_saved_is_taken_again(tmp_path):
    check("gorp", "llama", "float32", Kill(4, unsaved=True), tmp_path)


@pytest.mark.parametrize("kind", INSIDE_AN_EPOCH)
def test_a_task_that_ends_inside_an_epoch_takes_no_step_too_many(kind, tmp_path):
    """Cut off when its last step is saved and nothing is left but the end of the task."""
    steps = INSIDE_AN_EPOCH[kind][0]
    check("gorp", "llama", kind, Kill(steps), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", INSIDE_AN_EPOCH)
def test_a_task_that_ends_inside_an_epoch_resumes_at_every_step(kind, tmp_path):
    for steps in range(INSIDE_AN_EPOCH[kind][0] + 1):
        check("gorp", "llama", kind, Kill(steps), tmp_path / str(steps))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumes_to_the_same_bits_wherever_it_is_cut(variant, family, kind, tmp_path):
    for steps in CUTS:
        check(variant, family, kind, Kill(steps), tmp_path / str(steps))


class Interrupt(TrainerCallback):
    """Signals at the beginning of a step."""

    def __init__(self, step: int, *signals: int) -> None:
        self.step, self.signals = step, signals

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step - 1:
            for number in self.signals:
                signal.raise_signal(number)


@pytest.fixture
def default_signals():
    """As in a program that a shell started in the foreground."""
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    assert {number: signal.getsignal(number) for number in defaults} == defaults
    for number, handler in before.items():
        signal.signal(number, handler)


INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(
    ("family", "step", "signals", "options", "message", "resumed_at"),
    [
        ("llama", 1, (INT,), {"save_steps": 200}, "Step 1 of 8 of task task2 is saved.", 1),
        ("t5", 5, (INT,), {"save_strategy": "epoch"}, "Step 5 of 8 of task task2 is saved.", 5),
        ("llama", 8, (INT,), {"save_steps": 200}, "Step 8 of 8 of task task2 is saved.", 8),
        ("llama", 4, (INT, INT), {"save_steps": 2}, "", 2),
        ("llama", 4, (INT,), {"save_strategy": "no"}, "", 0),
        ("llama", 3, (TERM,), {"save_steps": 200}, "Step 3 of 8 of task task2 is saved.", 3),
        ("llama", 4, (TERM, TERM), {"save_steps": 2}, "", 2),
        ("llama", 4, (INT, TERM), {"save_steps": 2}, "", 2),
    ],
)
def test_a_signal_saves_the_running_step(family, step, signals, options, message, resumed_at, tmp_path):
    """Once: the step ends and is saved. Twice, or where nothing is to be saved: training is left at once."""
    between, weights, state = unbroken("gorp", family, "float32")
    options = {"save_strategy": "steps"} | options
    model, method = build("gorp", family, torch.float32)
    method.load_state_dict(through_a_file(between, tmp_path / "method.safetensors"))
    with pytest.raises(Terminated if signals[-1] == TERM else KeyboardInterrupt) as caught:
        train(model, method, 2, tmp_path / "run", callbacks=(Interrupt(step, *signals),), **options)
    assert str(caught.value) == message
    assert isinstance(caught.value, Terminated) == (signals[-1] == TERM)
    if signals != (INT,):  # the same objects go on, or new ones
        model, method = build("gorp", family, torch.float32)
        method.load_state_dict(through_a_file(between, tmp_path / "method.safetensors"))
    result = train(model, method, 2, tmp_path / "run", **options)
    assert result.resumed_at == resumed_at
    assert_equal(model.state_dict(), weights)
    assert_equal(method.state_dict(), state)


def test_who_catches_sigint_already_keeps_it(tmp_path):
    caught = []
    before = signal.signal(signal.SIGINT, lambda *_: caught.append(1))
    try:
        model, method = build("gorp", "llama", torch.float32)
        result = train(model, method, 1, tmp_path, callbacks=(Interrupt(3, INT),), save_strategy="steps")
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught == [1] and result.steps == STEPS


def test_outside_the_main_thread_nothing_is_caught(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        model, method = build("gorp", "llama", torch.float32)
        result = pool.submit(train, model, method, 1, tmp_path, save_strategy="steps").result()
    assert result.steps == STEPS
