"""The method `gorp` computes the same weights as `gorp.core.reference`, step by step in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gorp.core.reference import ReferenceSettings, ReferenceWeight, adam_direction
from gorp.layers.lora import LoraSettings
from gorp.methods.base import TaskContext
from gorp.methods.gorp import Gorp, GorpConfig
from tests.matrices import projector


LORA_RATE, CORE_RATE, DECAY, STEPS, K = 1e-2, 3e-3, 0.1, 30, 4
SIZES = {"exact": (12, 10, 8), "sketched": (64, 48, 40)}  # q = 12 spans the first pair of layers, not the second
BOTH = {"different weights": (("a",), ("b",)), "the same weights": (("a", "b"), ("a", "b"))}


class Net(nn.Module):
    def __init__(self, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        self.a = nn.Linear(sizes[0], sizes[1], bias=False, dtype=torch.float64)
        self.b = nn.Linear(sizes[1], sizes[2], bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def batches(task: int, sizes: tuple[int, int, int]) -> list[tuple[Tensor, Tensor]]:
    """Inputs with a decaying spectrum and answers of a random teacher, one batch a step."""
    generator = torch.Generator().manual_seed(task)
    n, _, m = sizes
    decay = 0.6 if sizes == SIZES["exact"] else 0.9
    teacher = torch.randn(m, n, generator=generator, dtype=torch.float64)
    mix = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q * decay ** torch.arange(n)
    inputs = [torch.randn(32, n, generator=generator, dtype=torch.float64) @ mix.mT for _ in range(STEPS)]
    return [(x, torch.tanh(x @ teacher.mT)) for x in inputs]


def begin(net: Net, method: Gorp, index: int) -> torch.optim.Optimizer:
    method.begin_task(net, context(index))
    method.begin_training(net, context(index))
    return torch.optim.AdamW(method.parameter_groups(net, LORA_RATE), lr=LORA_RATE, weight_decay=DECAY)


def context(index: int) -> TaskContext:
    return TaskContext(name=f"t{index}", index=index, seed=0, num_steps=STEPS, batches=lambda size, limit: iter(()))


def run(net: Net, method: Gorp, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]) -> None:
    """Call the method hooks in the order of the Trainer."""
    for x, y in data:
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        with torch.no_grad():
            method.edit_gradients(net, optimizer)
            optimizer.step()
            method.after_step(net, optimizer)


def run_reference(weights: dict[str, ReferenceWeight], data: list[tuple[Tensor, Tensor]]) -> None:
    for x, y in data:
        dense = {name: w.effective().detach().requires_grad_(True) for name, w in weights.items()}
        answer = F.linear(torch.tanh(F.linear(x, dense["a.weight"])), dense["b.weight"])
        gradients = torch.autograd.grad((answer - y).square().mean(), list(dense.values()))
        for weight, gradient in zip(weights.values(), gradients, strict=True):
            weight.step(gradient)


def effective(method: Gorp) -> dict[str, Tensor]:
    """Return W + U C Vᵀ + s B A of every weight, during a task."""
    result = {}
    for name in ("a.weight", "b.weight"):
        weight = method.weights.parameter(name).detach().clone()
        if name in method.task.cores:
            layer = method.task.cores[name]
            weight += layer.left @ layer.core.detach() @ layer.right.mT
        if name in method.task.pairs:
            weight += method.task.pairs[name].delta().dense()
        result[name] = weight
    return result


def references(method: Gorp, settings: ReferenceSettings) -> dict[str, ReferenceWeight]:
    """Return one reference per weight, in the method's current state; a branch that the weight lacks has no effect."""
    result = {}
    for name in ("a.weight", "b.weight"):
        weight, pair = method.weights.parameter(name).detach().clone(), method.task.pairs.get(name)
        m, n = weight.shape
        result[name] = ReferenceWeight(
            weight,
            pair.down.detach().clone() if pair else torch.zeros(1, n),
            pair.up.detach().clone() if pair else torch.zeros(m, 1),
            settings if name in method.task.cores else ReferenceSettings(**vars(settings) | {"core_rate": 0.0}),
            basis=method.memory.basis(name, weight),
            core_basis=method.memory.basis(f"{name}::core", torch.zeros(K, K).double()),
        )
    return result


def compare(
    sizes: str, where: str, mode: str, moments: str, energy: float = 0.9, **options: int
) -> tuple[float, Gorp, dict[str, ReferenceWeight], torch.optim.Optimizer]:
    """Train two tasks of 30 steps, T = 10, the second one with the method and with the reference.

    Returns:
        The relative difference of the weights' changes in the second task (the worst weight), the method, the
        references and the method's optimizer.
    """
    torch.manual_seed(0)
    net, (lora, full) = Net(SIZES[sizes]), BOTH[where]
    config = GorpConfig(
        mode=mode, full_modules=full, rank=K, staggered=False, core_learning_rate=CORE_RATE, moments=moments,
        energy=energy, recompress=0.0, memory_source="moment", **options,
    )  # fmt: skip
    method = Gorp(config, LoraSettings(r=3, lora_alpha=6.0, target_modules=lora))
    method.setup(net)
    optimizer = begin(net, method, 1)
    run(net, method, optimizer, batches(1, SIZES[sizes]))
    method.end_task(net, optimizer, context(1))
    optimizer = begin(net, method, 2)
    settings = ReferenceSettings(
        mode=mode, k=K, T=10, lora_rate=LORA_RATE, core_rate=CORE_RATE, lora_scale=2.0, weight_decay=DECAY,
        energy=energy, moments=moments,
    )  # fmt: skip
    slow, start = references(method, settings), effective(method)
    run_reference(slow, batches(2, SIZES[sizes]))
    run(net, method, optimizer, batches(2, SIZES[sizes]))
    fast = effective(method)
    worst = max(
        ((fast[name] - slow[name].effective()).norm() / (fast[name] - start[name]).norm()).item() for name in fast
    )
    return worst, method, slow, optimizer


@pytest.mark.parametrize("moments", ["rotate", "keep", "reset"])
@pytest.mark.parametrize("where", BOTH)
@pytest.mark.parametrize("mode", ["strict", "paper"])
def test_with_an_exact_frame_the_weights_equal_the_reference(mode, where, moments):
    difference, method, slow, _ = compare("exact", where, mode, moments)
    print(f"\n{mode}, {where}, {moments}: {difference:.1e}")
    assert all(weight.basis.shape[1] + weight.core_basis.shape[1] > 0 for weight in slow.values())
    assert all(layer.core.dtype == torch.float64 for layer in method.task.cores.values())
    assert difference <= 1e-9


@pytest.mark.parametrize("where", BOTH)
@pytest.mark.parametrize("mode", ["strict", "paper"])
def test_with_a_sketched_frame_the_weights_stay_near_the_reference(mode, where):
    difference, *_ = compare("sketched", where, mode, "rotate")
    print(f"\n{mode}, {where}, sketched: {difference:.1e}")
    assert 1e-9 < difference <= 0.01


def test_s_grows_by_the_same_directions_as_in_the_reference():
    _, method, slow, optimizer = compare("exact", "the same weights", "strict", "rotate", energy=0.7, budget=1)
    before = {name: weight.basis.shape[1] for name, weight in slow.items()}
    method.end_task(Net(SIZES["exact"]), optimizer, context(2))
    for name, weight in slow.items():
        grown = method.memory.basis(name, weight.weight)
        assert grown.shape[1] > before[name]
        torch.testing.assert_close(projector(grown), projector(weight.grown_basis()), rtol=0, atol=1e-8)


def test_the_references_adam_equals_torchs():
    weight = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    copy = weight.detach().clone()
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0)
    m, v = torch.zeros_like(copy), torch.zeros_like(copy)
    for step in range(1, 11):
        weight.grad = torch.randn_like(copy)
        copy -= 0.1 * adam_direction(weight.grad, m, v, step=step, betas=(0.9, 0.999), eps=1e-8)
        optimizer.step()
    torch.testing.assert_close(weight.detach(), copy, rtol=1e-12, atol=1e-12)
