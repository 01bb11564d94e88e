"""A compiled model has the gradients of the eager model, and one graph for all combinations of active watches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gorp.core.frame import Frame
from gorp.layers.lora import LoraSettings, add_lora
from gorp.layers.low_rank import wrap
from gorp.layers.watch import PairWatch, RowWatch
from gorp.methods.base import TaskContext
from tests.matrices import basis
from tests.runs import fresh, tiny, tokenizer, train


# Dynamo instantiates an autograd.Function while tracing it, and torch warns about that.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


class Counting:
    """A backend that counts the graphs and runs them eagerly."""

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


def test_the_watch_operator_is_registered_correctly():
    torch.library.opcheck(torch.ops.gorp.watch.default, (torch.randn(7, 6), torch.randn(7, 5), 0))


@pytest.mark.parametrize(("lora", "checkpointed"), [((), False), (("0",), False), (("0", "2"), True)])
def test_watches_record_the_same_in_a_compiled_model_as_in_an_eager_one(lora, checkpointed):
    found = []
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
        pairs_of = [PairWatch(model[i]) for i in (0, 2)]
        rows_of = [RowWatch(model[i]) for i in (0, 2)]
        counting = Counting()

        def forward(x, model=model):
            return checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)

        run = torch.compile(forward, backend=counting) if compiled else forward
        torch.manual_seed(1)
        for step in range(5):
            for i, watch in enumerate(pairs_of):
                watch.on = (step + i) % 2 == 0
            for _ in range(2):
                run(torch.randn(3, 7, 6, requires_grad=True)).square().sum().backward()
            found.append([*(watch.take() for watch in (*pairs_of, *rows_of)), layer.core.grad.clone()])
        assert counting.graphs == int(compiled)
    for eager, compiled in zip(found[:5], found[5:], strict=True):
        torch.testing.assert_close(eager, compiled)
        assert sorted(map(len, eager[:2])) == [0, 2]


@pytest.mark.slow
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
            method.begin_training(model, context)
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
                method.after_step(model, optimizer)
                optimizer.zero_grad()
                losses.append(loss.item())
            method.end_task(model, optimizer, context)
        # One graph per task: the second task has other layers and watches.
        assert counting.graphs == 2 * compiled
        found.append(losses)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_training_with_torch_compile_gives_the_same_weights(tmp_path):
    weights = []
    for name, training in (("eager", {}), ("compiled", {"torch_compile": True, "torch_compile_backend": "aot_eager"})):
        torch.manual_seed(0)
        model = tiny("llama")
        method = fresh("gorp", model, lora=LoraSettings(r=2), full_modules="all-linear")
        for task in (1, 2):
            train(model, method, task, tmp_path / f"{name}{task}", **training)
        weights.append({key: value.clone() for key, value in model.state_dict().items()})
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)
