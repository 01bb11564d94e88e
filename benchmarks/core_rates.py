"""Train a single core for 600 noisy steps at several learning rates, and compare the rules for its moments.

    python benchmarks/core_rates.py [--rules rotate keep] [--rates 0.02 0.08] [--seeds 0 1]

One linear layer, 32 x 32, should become W + ΔW*, where the singular values of ΔW* fall from 1 to 0.03. Each step has
four rows, with noise of 0.3 on the targets; the learning rate falls to 0; k = 8, T = 10. The script prints the relative
error ‖ΔW - ΔW*‖² / ‖ΔW*‖², one number per seed.
"""

import argparse

import torch
from moments import RULES, ruled
from torch import nn

from gorp.layers.lora import LoraSettings
from gorp.methods.base import TaskContext
from gorp.methods.gorp import Gorp, GorpConfig


WIDTH, STEPS, ROWS, NOISE = 32, 600, 4, 0.3


def relative_error(rule: str, rate: float, seed: int) -> float:
    """Return ‖ΔW - ΔW*‖² / ‖ΔW*‖² after training."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False))
    left, right = (torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q for _ in range(2))
    wanted = left * torch.logspace(0, -1.5, WIDTH) @ right
    target = model[0].weight.detach() + wanted
    config = GorpConfig(full_modules=("0",), moments=rule.partition(",")[0])  # pyright: ignore[reportArgumentType]
    method = Gorp(config, LoraSettings(target_modules="none"))
    method.setup(model)
    context = TaskContext(name="t", index=1, seed=seed, num_steps=STEPS, batches=lambda size, limit: iter(()))
    method.begin_task(model, context)
    method.begin_training(model, context)
    optimizer = torch.optim.AdamW(method.parameter_groups(model, rate), lr=rate, weight_decay=0.0)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / STEPS)
        optimizer.zero_grad()
        x = torch.randn(ROWS, WIDTH)
        (model(x) - x @ target.mT - NOISE * torch.randn(ROWS, WIDTH)).square().mean().backward()
        with torch.no_grad():
            method.edit_gradients(model, optimizer)
            optimizer.step()
            method.after_step(model, optimizer)
    method.end_task(model, optimizer, context)
    return ((method.deltas["0.weight"].dense() - wanted).norm() / wanted.norm()).square().item()


def main() -> None:
    """Parse the arguments, train, and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="*", default=list(RULES))
    parser.add_argument("--rates", type=float, nargs="*", default=[0.005, 0.01, 0.02, 0.04, 0.08, 0.16])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for rule in args.rules:
        with ruled(rule):
            for rate in args.rates:
                print(rule, rate, *(f"{relative_error(rule, rate, seed):.3f}" for seed in args.seeds), flush=True)


if __name__ == "__main__":
    main()
