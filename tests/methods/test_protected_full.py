"""Protected full fine-tuning against the slow way: keep all of W_begin, and project with the n x n projector."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import TrainerCallback

from gorp.errors import ConfigError, ModelError
from gorp.methods.base import TaskContext
from gorp.methods.gorp import GorpConfig
from gorp.methods.protected_full import ProtectedFull, ProtectedFullConfig
from tests.runs import assert_equal, fresh, tiny, train


OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
}
both_optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS)


class Net(nn.Module):
    """Two linear layers with a bend between them; the mean squared error is the loss."""

    def __init__(self, n: int = 8, hidden: int = 6, m: int = 5, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(n)
        self.first, self.second = nn.Linear(n, hidden, dtype=dtype), nn.Linear(hidden, m, dtype=dtype)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.double) / p.shape[-1] ** 0.5)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        y = self.second(torch.tanh(self.first(x)))
        return SimpleNamespace(loss=(y - labels).square().mean())


def rows(seed: int, net: Net, count: int = 12, *, span: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """A batch of random inputs, or of random ones in the columns of `span`, and random answers."""
    generator = torch.Generator().manual_seed(seed)
    width = net.first.in_features if span is None else span.shape[1]
    x = torch.randn(count, width, generator=generator, dtype=torch.double)
    x = x if span is None else x @ span.double().mT
    labels = torch.randn(count, net.second.out_features, generator=generator, dtype=torch.double)
    return {"x": x.to(net.first.weight.dtype), "labels": labels.to(net.first.weight.dtype)}


def context(batch: dict[str, torch.Tensor], index: int = 1) -> TaskContext:
    return TaskContext(name=f"t{index}", index=index, seed=0, num_steps=6, batches=lambda size, limit: iter([batch]))


def protecting(net: Net, bases: dict[str, torch.Tensor], **options) -> ProtectedFull:
    """A method that protects `bases`, each under the name of its weight."""
    method = ProtectedFull(ProtectedFullConfig(**{"full_modules": ("first", "second"), "budget": 1.0} | options))
    method.setup(net)
    energies = {f"{name}::energy": torch.arange(1.0, basis.shape[1] + 1) for name, basis in bases.items()}
    method.memory.load_state_dict(bases | energies)
    return method


def learn(net, method, batch, optimizer: str, *, rate: float = 0.02, steps: int = 6, index: int = 1) -> None:
    """One task as the Trainer would run it, on one batch."""
    cls, options = OPTIMIZERS[optimizer]
    method.begin_task(net, context(batch, index))
    made = cls(method.parameter_groups(net, rate), lr=rate, **options)
    for _ in range(steps):
        net(**batch).loss.backward()
        method.edit_gradients(net, made)
        made.step()
        with torch.no_grad():
            method.after_step(net, made)
        made.zero_grad()
    method.end_task(net, made, context(batch, index))


def learn_slowly(net: Net, bases, batch, optimizer: str, *, rate: float = 0.02, steps: int = 6) -> None:
    """The same by the definition; only the two weights move."""
    cls, options = OPTIMIZERS[optimizer]
    weights = {name: p for name, p in net.named_parameters() if name.endswith("weight")}
    begin = {name: p.detach().clone() for name, p in weights.items()}
    outside = {name: torch.eye(p.shape[1]).to(p) for name, p in weights.items()}
    for name, basis in bases.items():
        outside[name] -= basis.to(weights[name]) @ basis.to(weights[name]).mT  # I - S Sᵀ
    made = cls(weights.values(), lr=rate, **options)
    for _ in range(steps):
        net(**batch).loss.backward()
        for name, p in weights.items():
            p.grad = p.grad @ outside[name]  # (m, n) @ (n, n)
        made.step()
        for name, p in weights.items():
            p.data = begin[name] + (p.data - begin[name]) @ outside[name]
        net.zero_grad()


def orthonormal(n: int, s: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, s, generator=generator, dtype=torch.double))[0].float()


@both_optimizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_slow_way(optimizer, dtype):
    bases = {"first.weight": orthonormal(8, 3), "second.weight": orthonormal(6, 4)}
    net, slow = Net(dtype=dtype), Net(dtype=dtype)
    method, batch = protecting(net, bases), rows(1, net)
    learn(net, method, batch, optimizer)
    learn_slowly(slow, bases, batch, optimizer)
    for name in bases:
        expected = slow.get_parameter(name) - Net(dtype=dtype).get_parameter(name)
        assert expected.norm() > 0.01
        assert (method.deltas[name].dense() - expected).norm() <= 1e-5 * expected.norm()


def test_earlier_tasks_are_told_of_as_by_gorp():
    """How much of each S holds, and how far its outputs moved: nothing where S holds all, and less than without S."""
    changes = {}
    for threshold in (1e-3, 1e3):
        net, span = Net(), orthonormal(8, 4)
        method = protecting(net, {}, full_modules=("first",), threshold=threshold)
        for index, batch in enumerate((rows(1, net, 40, span=span), rows(2, net)), 1):
            learn(net, method, batch, "adamw", index=index)
        told = method.facts()["earlier"]
        assert list(told) == ["t1", "t2"] and told["t2"]["output_change"] == 0.0
        changes[threshold] = told["t1"]
    assert changes[1e-3]["coverage"] == pytest.approx(1.0) and changes[1e-3]["output_change"] < 5e-3  # R is bfloat16
    assert changes[1e3]["coverage"] == 0.0 and changes[1e3]["output_change"] > 0.1


@both_optimizers
def test_without_s_it_is_plain_full_fine_tuning_bit_for_bit(optimizer):
    net, plain = Net(), Net()
    method, batch = protecting(net, {}), rows(1, net)
    learn(net, method, batch, optimizer)
    cls, options = OPTIMIZERS[optimizer]
    made = cls([plain.first.weight, plain.second.weight], lr=0.02, **options)
    for _ in range(6):
        plain(**batch).loss.backward()
        made.step()
        plain.zero_grad()
    for name in ("first.weight", "second.weight"):
        assert torch.equal(method.deltas[name].dense(), plain.get_parameter(name) - Net().get_parameter(name))
    assert torch.equal(net.first.bias, Net().first.bias)


@both_optimizers
@settings(max_examples=40)
@given(data=st.data())
def test_no_change_acts_on_s(optimizer, data):
    n, hidden = data.draw(st.integers(2, 12), label="n"), data.draw(st.integers(2, 9), label="hidden")
    sizes = {"first.weight": (n, data.draw(st.integers(1, n - 1), label="s"))}
    sizes["second.weight"] = (hidden, data.draw(st.integers(1, hidden - 1), label="s of the second"))
    bases = {name: orthonormal(*size, seed=data.draw(st.integers(0, 99))) for name, size in sizes.items()}
    net = Net(n, hidden)
    before = {name: net.get_parameter(name).detach().clone() for name in bases}
    method, rate = protecting(net, bases), data.draw(st.sampled_from([1e-4, 1e-2, 1.0]), label="rate")
    learn(net, method, rows(data.draw(st.integers(0, 99)), net), optimizer, rate=rate)
    for name, basis in bases.items():
        change = method.deltas[name].dense().double()
        assert change.norm() > 0
        assert (change @ basis.double()).norm() <= 1e-5 * change.norm()
        assert method.space.report.leak[name] <= 1e-5
        served = (net.get_parameter(name).detach() - before[name]).double()  # W₀ + delta, rounded to float32
        assert (served - change).norm() <= 1e-6 * before[name].norm() + 1e-6 * change.norm()


@both_optimizers
def test_what_the_earlier_tasks_inputs_were_answered_stays(optimizer):
    """S from the inputs themselves: six directions of eight, of which all are protected."""
    net, span = Net(), orthonormal(8, 6)
    method = protecting(net, {}, full_modules=("first",), threshold=1e-3)
    old = rows(1, net, 40, span=span)
    learn(net, method, old, optimizer)
    assert method.memory.size("first.weight") == 6
    answers = net.first(old["x"])
    learn(net, method, rows(2, net), optimizer, index=2)
    assert method.deltas["first.weight"].norm() > 0.01
    torch.testing.assert_close(net.first(old["x"]), answers, rtol=0, atol=1e-5)


def test_a_weight_whose_s_is_everything_does_not_move_nor_decay():
    net = Net()
    method = protecting(net, {"first.weight": torch.eye(8), "second.weight": orthonormal(6, 2)})
    assert method.warnings(1)[0].startswith("S is the whole space for 1 of 2 weights")
    batch = rows(1, net)
    method.begin_task(net, context(batch))
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["second.weight"]
    method.abandon(net)
    learn(net, method, batch, "adamw")
    assert torch.equal(net.first.weight, Net().first.weight)
    assert not torch.equal(net.second.weight, Net().second.weight)
    assert method.space.report.leak["first.weight"] == method.space.report.served["first.weight"] == 0.0


def test_a_task_that_could_change_nothing_is_refused(tmp_path):
    model = tiny("llama")
    method = fresh("protected_full", model, full_modules=("q_proj",), budget=1.0)
    everything = {f"model.layers.{i}.self_attn.q_proj.weight": torch.eye(32) for i in (0, 1)}
    method.memory.load_state_dict(everything | {f"{name}::energy": torch.ones(32) for name in everything})
    with pytest.raises(ConfigError, match=r"S is the whole space for every trained weight \(2 of them\)"):
        train(model, method, 2, tmp_path)


@pytest.mark.parametrize("autocast", [False, True])
def test_what_rounding_leaves_of_a_gradient_in_s_moves_nothing(autocast):
    """Adam would make full steps of it: all inputs of the new task are protected ones. bfloat16 products leave more."""
    net, span = Net(), orthonormal(8, 4)
    method = protecting(net, {"first.weight": span}, full_modules=("first",))
    method.begin_task(net, context(batch := rows(1, net, span=span)))
    made = torch.optim.AdamW(method.parameter_groups(net, 0.02), lr=0.02, weight_decay=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = net(**batch).loss
    loss.backward()
    assert net.first.weight.grad.norm() > 0.01
    method.edit_gradients(net, made)
    assert (net.first.weight.grad == 0).all()


def test_abandon_gives_back_s_and_the_weights():
    net = Net()
    method = protecting(net, {"first.weight": orthonormal(8, 6)}, budget=0.5)  # its cap is 4: begin_task cuts
    before = {key: x.clone() for key, x in (*method.state_dict().items(), *net.state_dict().items())}
    report = method.space.report
    method.begin_task(net, context(rows(1, net)))
    assert method.memory.size("first.weight") == 4
    with torch.no_grad():
        net.first.weight.add_(1.0)
    method.abandon(net)
    assert_equal({**method.state_dict(), **net.state_dict()}, before)
    assert method.space.report is report and not any(p.requires_grad for p in net.parameters())
    assert not net.first._forward_hooks and not net.first._forward_pre_hooks


class Look(TrainerCallback):
    """What is float32 while a task trains."""

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.wide = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
        self.bf16 = args.bf16


@pytest.mark.parametrize(
    ("family", "dtype", "autocast"),
    [
        ("llama", torch.bfloat16, True),
        ("llama", torch.bfloat16, False),
        ("t5", torch.bfloat16, True),
        ("t5", torch.float16, False),
    ],
)
def test_of_a_narrow_model_the_trained_weights_alone_are_widened(family, dtype, autocast, tmp_path):
    model, base = tiny(family, dtype=dtype), tiny(family, dtype=dtype)
    targets = ("q_proj", "down_proj") if family == "llama" else ("q", "wo")
    method, look = fresh("protected_full", model, full_modules=targets), Look()
    options = {} if autocast else {"bf16": False}
    for task in (1, 2):
        result = train(model, method, task, tmp_path, callbacks=(look,), num_train_epochs=1, **options)
    assert look.wide == set(method.deltas) and look.bf16 == autocast
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert result.facts["leak"] <= 1e-5 < result.facts["leak_served"]
    for name, delta in method.deltas.items():
        made = (base.get_parameter(name).float() + delta.dense()).to(dtype)
        assert torch.equal(model.get_parameter(name), made)
        assert (delta.dense() != 0).double().mean() > 0.5
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_dtype_of_products_is_that_of_autocast(tmp_path):
    """What a gradient's rounding is depends on it, and the weight's own dtype does not say it."""

    class Ask(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            self.seen = {layer.compute_dtype for layer in method._layers.values()}

    for options, expected in (({}, torch.float32), ({"bf16": True}, torch.bfloat16)):
        model, ask = tiny("llama"), Ask()
        method = fresh("protected_full", model)
        train(model, method, 1, tmp_path / str(expected), callbacks=(ask,), num_train_epochs=0.25, **options)
        assert ask.seen == {expected}


def test_options_of_one_name_have_gorps_defaults():
    ours, gorps = ProtectedFullConfig(), GorpConfig().resolved()
    for option in ("budget", "memory_rows", "threshold"):
        assert getattr(ours, option) == getattr(gorps, option)


@pytest.mark.parametrize(
    ("modules", "error", "message"),
    [
        ("none", ConfigError, "protected_full has nothing to train"),
        (("gate_prj",), ModelError, r"method\.full_modules: `gate_prj` matches no linear layer of this model"),
        (("lm_head",), ModelError, "`lm_head` cannot be trained: it shares its weight"),
    ],
)
def test_layers_that_cannot_be_trained_are_refused(modules, error, message):
    with pytest.raises(error, match=message):
        fresh("protected_full", tiny("llama"), full_modules=modules)
