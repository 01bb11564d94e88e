"""What `protected_full` needs, from shapes, held to the tensors of real tasks."""

import torch

from gorp.core.state import footprint
from gorp.estimate import Device, predict
from gorp.estimate.ledger import Ledger
from gorp.estimate.protected import ProtectedShapes
from gorp.methods.base import TaskContext
from gorp.methods.protected_full import ProtectedFull, ProtectedFullConfig
from gorp.workspace import load_config
from tests.models_small import tiny_llama
from tests.tokenizers_small import llama_tokenizer
from tests.workspace.project import make_project


DEVICE = Device(name="given", flops=1e12, bandwidth=1e11)


def begun(budget: float, dtype: torch.dtype = torch.float32):
    """A method in its second task, S of every weight at the budget, or a direction below the whole space."""
    model = tiny_llama(llama_tokenizer()).to(dtype)
    method = ProtectedFull(ProtectedFullConfig(budget=budget))
    method.setup(model)
    shapes = ProtectedShapes(model, method)
    sizes = shapes.directions(1)
    bases = {name: torch.eye(n)[:, : sizes[name]] for name, (_, n) in shapes.shapes.items()}
    method.memory.load_state_dict(bases | {f"{name}::energy": torch.ones(sizes[name]) for name in bases})
    rows = torch.randint(3, model.config.vocab_size, (16, 40))
    batch = {"input_ids": rows, "labels": rows}
    task = TaskContext(name="t", index=2, seed=0, num_steps=1, batches=lambda *_: iter([batch]))
    method.begin_task(model, task)
    return model, method, shapes, task, batch


def test_what_is_held_while_a_task_runs_is_exact():
    for budget in (0.5, 1.0):
        _, method, shapes, *_ = begun(budget)
        assert shapes.starts(1) == footprint(method._starts)
        sizes = {name: method.memory.size(name) for name in shapes.shapes}
        assert sizes == shapes.directions(1) and all(0 < s < shapes.shapes[name][1] for name, s in sizes.items())
    assert shapes.starts(0) == 0 and set(shapes.directions(0).values()) == {0}


def test_what_is_kept_is_never_more_and_at_the_budget_exact():
    model, method, shapes, task, _ = begun(0.5)
    method.end_task(model, torch.optim.SGD(method.parameter_groups(model, 0.1), lr=0.1), task)
    assert footprint(method.state_dict()) == shapes.kept(1)


def test_the_products_of_a_step_are_counted():
    model, method, shapes, _, batch = begun(0.5)
    optimizer = torch.optim.SGD(method.parameter_groups(model, 0.1), lr=0.1)
    model(**batch).loss.backward()
    with Ledger() as ledger, torch.no_grad():
        method.edit_gradients(model, optimizer)
        method.after_step(model, optimizer)
    seconds, flops = shapes.step(1, DEVICE)
    assert flops == ledger.flops and seconds > 0
    assert shapes.step(0, DEVICE) == (0.0, 0)


def test_the_estimate_of_a_yaml_has_its_weights_in_float32(tmp_path):
    for dtype in ("float32", "bfloat16"):
        path = make_project(
            tmp_path / dtype, family="llama", model={"path": "model", "dtype": dtype}, method={"name": "protected_full"}
        )
        config = load_config(path)
        estimates = predict(config, DEVICE)
        assert list(estimates) == ["protected_full", "gorp", "lora", "full"]
        ours, others = estimates["protected_full"], {k: v for k, v in estimates.items() if k != "protected_full"}
        _, method, shapes, *_ = begun(0.75)
        size = sum(m * n for m, n in shapes.shapes.values())
        assert (ours.trainable, ours.gradients, ours.optimizer) == (size, 4 * size, 8 * size)
        assert ours.protection == shapes.starts(1) + footprint(method.memory_tensors())
        assert ours.main_memory == size * (4 if dtype == "float32" else 2)
        assert ours.weights - others["full"].weights == (0 if dtype == "float32" else 2 * size)
        assert ours.peak > ours.weights + ours.optimizer + ours.protection
