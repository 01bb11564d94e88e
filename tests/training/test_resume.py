"""A run that was cut off and resumed is the run that was not, bit for bit.

The second of two tasks is cut off; then everything is made anew, as in a new process: model, method, optimizer. The
method comes from the file it was saved to after task 1, the rest from the task's last checkpoint.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

from gorp.adapters import LoraSettings
from gorp.methods import METHODS
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
CUTS = (0, 1, 3, 4, 8)  # nothing done; before, in and after a second refresh; nothing left but the end


def build(variant: str, family: str, dtype: torch.dtype):
    name, options = VARIANTS[variant]
    model = tiny(family, dropout=0.1, dtype=dtype)
    lora = LoraSettings(r=4, lora_dropout=0.1) if METHODS[name].uses_lora else None
    return model, fresh(name, model, lora=lora, **options)


@cache
def unbroken(variant: str, family: str, kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The method's state after task 1, and the model and method after task 2."""
    dtype, training = KINDS[kind]
    model, method = build(variant, family, dtype)
    with TemporaryDirectory() as folder:
        train(model, method, 1, Path(folder), **training)
        between = {name: x.clone() for name, x in method.state_dict().items()}
        result = train(model, method, 2, Path(folder), **training)
    assert result.steps == STEPS
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
    assert_equal(resumed_weights, weights)
    assert_equal(resumed_state, state)


@pytest.mark.parametrize(
    ("variant", "family", "kind", "steps"),
    [
        *[("gorp", "t5", "float32", steps) for steps in (2, 3, 4)],  # before, in and after a refresh
        ("gorp", "llama", "bfloat16", 5),
        ("gorp", "t5", "autocast", 3),
        ("gorp", "llama", "float32", 8),  # nothing is left but the end of the task
        ("gorp paper", "t5", "float32", 3),
        ("gorp paper", "llama", "bfloat16", 4),
        ("gorp paper sketch", "llama", "float32", 4),
        ("gorp sketch", "llama", "bfloat16", 4),
        ("gorp lora only", "llama", "float32", 5),
        ("gorp slow", "t5", "float32", 2),
        ("sequential_full", "llama", "bfloat16", 3),
        ("sequential_lora", "t5", "float32", 1),
        ("incremental_lora", "llama", "autocast", 5),
        ("ewc", "llama", "bfloat16", 4),
        ("olora", "t5", "bfloat16", 6),
        ("multi_task", "llama", "float32", 7),
    ],
)
def test_resumes_to_the_same_bits(variant, family, kind, steps, tmp_path):
    check(variant, family, kind, Kill(steps), tmp_path)


def test_a_step_that_was_not_saved_is_taken_again(tmp_path):
    check("gorp", "llama", "float32", Kill(4, unsaved=True), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumes_to_the_same_bits_wherever_it_is_cut(variant, family, kind, tmp_path):
    for steps in CUTS:
        check(variant, family, kind, Kill(steps), tmp_path / str(steps))
