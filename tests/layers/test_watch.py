"""Memory that a watch holds between forward and backward pass, and gradients that are treated as rounding."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from gorp.core.linalg import rounding_floor
from gorp.layers.lora import LoraSettings
from gorp.methods.base import TaskContext
from gorp.methods.gorp import Gorp, GorpConfig
from tests.runs import fresh, tiny


def context(index: int, *, steps: int = 5) -> TaskContext:
    return TaskContext(name="t", index=index, seed=0, num_steps=steps, batches=lambda size, limit: iter(()))


CHECKPOINTING = {"none": None, "reentrant": True, "not reentrant": False}


def watched_pass(index: int, checkpointing: str, *, cores: str = "none") -> tuple[int, dict[str, torch.Tensor]]:
    """Return the bytes of layer inputs held after the forward pass, and gradients and recorded rows after backward."""
    model = tiny("llama")
    options = {"full_modules": cores, "staggered": False, "adapter_rows": "trained"}
    method = fresh("gorp", model, lora=LoraSettings(target_modules="all-linear"), **options)
    names = [f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    for name in names if index > 1 else []:  # as if one task had been learned
        n = model.get_parameter(name).shape[1] if name != "lm_head.weight" else 32
        method.memory.extend(name, torch.randn(3, n, generator=torch.Generator().manual_seed(1)))
    torch.manual_seed(0)
    method.begin_task(model, context(index))
    method.begin_training(model, context(index))
    assert len(method.task.row_watches) == (len(method.task.pairs) if index > 1 else 0)
    assert all(watch.on for watch in method.task.pair_watches.values())
    model.train()
    if (reentrant := CHECKPOINTING[checkpointing]) is not None:
        newer = getattr(model, "activation_checkpointing_enable", None)  # transformers renamed it
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    ids = torch.randint(5, 90, (4, 64), generator=torch.Generator().manual_seed(2))
    sizes = {}

    def record_storage(_, args):
        storage = args[0].untyped_storage()
        sizes[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())

    for name in method.task.pairs:
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(record_storage)
    loss = model(input_ids=ids, labels=ids).loss
    held = sum(size for alive, size in sizes.values() if not alive.expired())
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {f"{name} row": watch.take() for name, watch in method.task.row_watches.items()}
    for name, watch in method.task.pair_watches.items():
        ((x, d),) = watch.take()
        found[f"{name} gradient"] = d.mT @ x
    return held, found


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_a_later_task_holds_no_more_inputs_than_the_first(checkpointing):
    """With checkpointing, inputs are computed again; a watch must not hold them in the meantime."""
    first, second = (watched_pass(index, checkpointing)[0] for index in (1, 2))
    print(f"\n{checkpointing}: {first} and {second} bytes")
    assert second == first
    assert (first == 0) == (checkpointing != "none")


@pytest.mark.parametrize("checkpointing", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("cores", ["none", "all-linear"])
def test_checkpointing_changes_neither_gradients_nor_recorded_rows(checkpointing, cores):
    plain, found = (watched_pass(2, way, cores=cores)[1] for way in ("none", checkpointing))
    assert set(plain) == set(found) and any(" row" in name for name in plain)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, msg=name)


ARITHMETIC = {
    "float32": (torch.float32, None),
    "a bfloat16 model": (torch.bfloat16, None),
    "bfloat16 autocast": (torch.float32, torch.bfloat16),
    "float16 autocast": (torch.float32, torch.float16),
}


def moved(arithmetic: str, *, outside: float) -> dict[str, float]:
    """Return the norms of B and of the core's delta after a task with the share `outside` of its inputs outside S."""
    torch.manual_seed(0)
    dtype, autocast = ARITHMETIC[arithmetic]
    model = nn.Sequential(nn.Linear(64, 48, bias=False), nn.Tanh(), nn.Linear(48, 32, bias=False)).to(dtype)
    config = GorpConfig(full_modules=("0",), rank=4, refresh_every=2, adapter_rows="trained")
    method = Gorp(config, LoraSettings(r=4, target_modules=("0",)))
    method.setup(model)
    inside, new = torch.linalg.qr(torch.randn(64, 8)).Q.mT.to(dtype).float().split([5, 3])
    method.memory.energy = 1 - 1e-7
    method.memory.extend("0.weight", inside)
    method.begin_task(model, context(2, steps=6))
    method.begin_training(model, context(2, steps=6))
    optimizer = torch.optim.AdamW(method.parameter_groups(model, 1e-2), lr=1e-2, weight_decay=0.0)
    for _ in range(6):
        optimizer.zero_grad()
        which = torch.randint(0, 3, (128,))
        x = (inside[which] + outside * new[which]).to(dtype)
        with nullcontext() if autocast is None else torch.autocast("cpu", dtype=autocast):
            y = model(x).float()
        (y - torch.eye(32)[which]).square().mean().backward()
        with torch.no_grad():
            method.edit_gradients(model, optimizer)
            optimizer.step()
            method.after_step(model, optimizer)
    (pair,), change = method.task.pairs.values(), method.task.full.finish()["0.weight"]
    return {"adapter": pair.up.norm().item(), "core": change.dense().norm().item()}


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
class TestRounding:
    def test_a_task_whose_gradient_lies_in_s_changes_nothing(self, arithmetic):
        """Low-precision products have rounding errors outside S, also after conversion to float32; they are ignored."""
        assert moved(arithmetic, outside=0.0) == {"adapter": 0.0, "core": 0.0}

    def test_a_task_with_a_tenth_of_its_inputs_outside_s_is_learned(self, arithmetic):
        assert min(moved(arithmetic, outside=0.1).values()) > 1e-3


def test_the_rounding_floor_depends_on_the_coarser_dtype():
    assert rounding_floor(torch.float64, torch.float64) == pytest.approx(1.5e-8, rel=0.01)
    assert rounding_floor(torch.float32, torch.float32) == pytest.approx(3.5e-4, rel=0.02)
    assert rounding_floor(torch.float32, torch.bfloat16) == pytest.approx(4 * 2**-7)
    assert rounding_floor(torch.float32, torch.float16) == pytest.approx(4 * 2**-10)
