"""What the core is for: a change of full rank, which no adapter of rank r can make, through k² trainable numbers."""

import torch
from torch import nn

from gorp.layers.lora import LoraSettings
from gorp.methods.base import TaskContext
from gorp.methods.gorp import Gorp, GorpConfig


WIDTH, RANK, STEPS = 32, 4, 400


def learned(lora: tuple[str, ...] | str, full: tuple[str, ...] | str) -> float:
    """Share of ‖ΔW*‖² that is left when W should become W + ΔW*, all singular values of ΔW* equal."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False))
    wanted = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
    target = model[0].weight.detach() + wanted
    method = Gorp(
        # The frame turns much from refresh to refresh here, and a core's steps are a fifth of its rate.
        GorpConfig(full_modules=full, rank=RANK, refresh_every=5, core_learning_rate=8e-2),
        LoraSettings(r=RANK, lora_alpha=2.0 * RANK, target_modules=lora),
    )
    method.setup(model)
    context = TaskContext(name="t", index=1, seed=0, num_steps=STEPS, batches=lambda size, limit: iter(()))
    method.begin_task(model, context)
    method.begin_training(model, context)
    optimizer = torch.optim.AdamW(method.parameter_groups(model, 2e-2), lr=2e-2, weight_decay=0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        x = torch.randn(256, WIDTH)
        (model(x) - x @ target.mT).square().mean().backward()
        with torch.no_grad():
            method.edit_gradients(model, optimizer)
            optimizer.step()
            method.after_step(model, optimizer)
    method.end_task(model, optimizer, context)
    return ((model[0].weight - target).norm() / wanted.norm()).square().item()


def test_a_core_makes_a_change_of_full_rank_and_an_adapter_cannot():
    floor = 1 - RANK / WIDTH  # Eckart and Young: what any change of rank r leaves
    adapter, core = learned(("0",), "none"), learned("none", ("0",))
    print(f"\nleft of the wanted change: adapter {adapter:.3f} (no less than {floor:.3f}), core {core:.3f}")
    assert floor - 1e-3 <= adapter
    assert core < 0.05
