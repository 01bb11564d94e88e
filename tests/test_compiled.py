"""Compiled models: the operations are those of the eager layer, and one graph serves every pattern of refreshes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gorp.adapters import LoraSettings, add_lora
from gorp.compiled import branches, observe
from gorp.frame import Frame
from gorp.layers import wrap
from gorp.method import TaskContext
from gorp.watch import GradientProbe, GradientTap
from tests.matrices import basis
from tests.runs import fresh, tiny, tokenizer, train


class Counting:
    """A compiler that does nothing but count its graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lora", [True, False])
def test_the_operation_is_a_lawful_one(lora, bias):
    draw = [torch.randn(*shape, requires_grad=True) for shape in ((7, 6), (3, 3), (2, 6), (5, 2))]
    x, core, down, up = draw
    factors = (down, up) if lora else (None, None)
    offset = torch.randn(5) if bias else None
    arguments = x, torch.randn(5, 6), offset, core, basis(5, 3).float(), basis(6, 3).float(), *factors, 0.5, 0
    torch.library.opcheck(branches, arguments)
    torch.library.opcheck(observe, (torch.randn(7, 5, requires_grad=True), torch.randn(7, 6), 0))


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("lora", [(), ("0",), ("0", "2")])
def test_watches_see_in_a_compiled_model_what_they_see_in_an_eager_one(lora, checkpointed):
    seen = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).requires_grad_(False)
        if lora:
            pairs = add_lora(model, list(lora), LoraSettings(r=2, target_modules=list(lora)))
            for pair in pairs.values():
                pair.up.data.normal_()
        layer = wrap(model, ["0"], rank=3)["0"]
        layer.fold(Frame(left=basis(5, 3).float(), right=basis(6, 3).float()))
        layer.core.data.normal_()
        taps = [GradientTap(model[i]) for i in (0, 2)]
        probes = [GradientProbe(model[i]) for i in (0, 2)]
        counting = Counting()

        def forward(x, model=model):
            return checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)

        run = torch.compile(forward, backend=counting) if compiled else forward
        torch.manual_seed(1)
        for step in range(5):
            for i, tap in enumerate(taps):
                tap.open = (step + i) % 2 == 0
            for _ in range(2):
                run(torch.randn(3, 7, 6, requires_grad=True)).square().sum().backward()
            seen.append([*(tap.take() for tap in taps), *(probe.take() for probe in probes), layer.core.grad.clone()])
        assert counting.graphs == int(compiled)
    for eager, compiled in zip(seen[:5], seen[5:], strict=True):
        torch.testing.assert_close(eager, compiled)
        assert sorted(map(len, eager[:2])) == [0, 2]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_one_graph_trains_every_step_as_the_eager_model_does(family):
    found = []
    for compiled in (False, True):
        model = tiny(family)
        method = fresh("gorp", model, lora=LoraSettings(r=2), full_modules="all-linear")
        counting = Counting()
        losses = []
        for task in (1, 2):
            context = TaskContext(index=task, name=str(task), num_steps=6, seed=0, batches=lambda size, limit: iter(()))
            torch.manual_seed(task)  # of A
            method.begin_task(model, context)
            run = torch.compile(model, backend=counting, fullgraph=True) if compiled else model
            groups = method.parameter_groups(model, 1e-2)
            optimizer = torch.optim.AdamW(groups, lr=1e-2)
            draw = torch.Generator().manual_seed(task)
            for _ in range(6):
                ids = torch.randint(5, len(tokenizer(family)), (2, 9), generator=draw)
                loss = run(input_ids=ids, labels=ids).loss
                loss.backward()
                method.edit_gradients(model, optimizer)
                optimizer.step()
                method.after_step(model)
                optimizer.zero_grad()
                losses.append(loss.item())
            method.end_task(model, optimizer, context)
        # One for the first task; from the second on probes watch as well.
        assert counting.graphs == 2 * compiled
        found.append(losses)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_trainer_compiles_the_model_and_learns_the_same(tmp_path):
    weights = []
    for name, training in (("eager", {}), ("compiled", {"torch_compile": True, "torch_compile_backend": "aot_eager"})):
        torch.manual_seed(0)
        model = tiny("llama")
        method = fresh("gorp", model, lora=LoraSettings(r=2), full_modules="all-linear")
        for task in (1, 2):
            train(model, method, task, tmp_path / f"{name}{task}", **training)
        weights.append({key: value.clone() for key, value in model.state_dict().items()})
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)
