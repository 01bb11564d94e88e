"""A method's own work in a training step does not make the CPU wait for the GPU, and a refresh of frames does once.

A wait empties the GPU's queue: while the CPU then puts the next kernels into it, the GPU has nothing to do.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gorp.data import Collator, Encoding, encode
from gorp.layers.lora import LoraSettings
from gorp.methods import METHODS
from gorp.methods.base import TaskContext
from tests.runs import fresh, rows, tiny, tokenizer


STEPS, PERIOD = 20, 18
"""More steps than a tiny Llama has linear layers (14), so that in some no layer's turn comes."""


@contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """The waits in the block: as torch reports them on a GPU; on the CPU what would be one if the tensor were there."""
    found: list[str] = []
    if device.type == "cpu":
        with Questions(found):
            yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    found += [str(warning.message) for warning in caught if "called a synchronizing" in str(warning.message)]


class Questions(TorchDispatchMode):
    """Notes every operation whose result Python needs: a number, or how many there are of something."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def steps(name: str, device: torch.device, **options) -> Iterator[tuple[int, int, int]]:
    """Of each step of two tasks: its number, how many layers get a new frame in it, and how often it waited."""
    model = tiny("llama").to(device)
    lora = LoraSettings(target_modules="all-linear") if METHODS[name].uses_lora else None
    method = fresh(name, model, lora=lora, **options)
    known = tokenizer("llama")
    for index in (1, 2):
        encoded = encode(rows(index), known, encoder_decoder=False, encoding=Encoding())
        made = Collator(pad_token_id=known.pad_token_id)(list(encoded))
        batch = {key: value.to(device) for key, value in made.items()}

        def batches(size, limit, batch=batch):
            for start in range(0, len(batch["labels"][:limit]), size):
                yield {key: value[:limit][start : start + size] for key, value in batch.items()}

        task = TaskContext(name=f"task{index}", index=index, seed=0, num_steps=STEPS, batches=batches)
        method.begin_task(model, task)
        method.begin_training(model, task)
        optimizer = torch.optim.AdamW(method.parameter_groups(model, 1e-3), lr=1e-3, fused=True)
        for step in range(1, STEPS + 1):
            watches = method.task.pair_watches.values() if name == "gorp" else ()
            due = sum(watch.on for watch in watches)
            loss = model(**batch).loss
            with waits(device) as asked:
                extra = method.extra_loss(model, batch, None)  # none of these looks at the outputs
            (loss if extra is None else loss + extra).backward()
            with waits(device) as edited:
                method.edit_gradients(model, optimizer)
            optimizer.step()
            with waits(device) as corrected, torch.no_grad():
                method.after_step(model, optimizer)
            optimizer.zero_grad()
            yield step, due, len(asked) + len(edited) + len(corrected)
        method.end_task(model, optimizer, task)


def test_a_wait_is_seen(either):
    with waits(either) as found:
        torch.ones(3, device=either).sum().item()
    assert len(found) == 1


@pytest.mark.parametrize(
    "name",
    ["sequential_lora", "incremental_lora", "sequential_full", "protected_full", "ewc", "olora", "nlora", "migu"],
)
def test_a_method_that_asks_for_no_outputs_does_not_wait_in_a_step(name, either):
    waited = [count for step, _, count in steps(name, either) if step > 1]  # in the first S comes to the GPU
    assert len(waited) == 2 * (STEPS - 1) and not any(waited)


@pytest.mark.parametrize("staggered", [True, False])
@pytest.mark.parametrize("mode", ["strict", "paper"])
def test_gorp_waits_once_in_a_step_with_a_refresh_however_many_layers_it_has_and_not_in_others(mode, staggered, either):
    options = {"full_modules": "all-linear", "refresh_every": PERIOD, "mode": mode, "staggered": staggered}
    seen = [(due, count) for step, due, count in steps("gorp", either, **options) if step > 1]
    assert {count for due, count in seen if due == 0} == {0}
    # On the CPU the small matrices are there already, and no tensor is asked for a single number.
    assert {count for due, count in seen if due > 0} == {1 if either.type == "cuda" else 0}
    assert {due for due, _ in seen if due > 0} == ({1} if staggered else {14})
