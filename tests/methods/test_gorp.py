"""GORP: S is out of reach at every step, within its budget, and whatever the method cannot keep it refuses."""

import pytest
import torch
from transformers import Trainer, TrainerCallback

from gorp.data import Collator, Encoding, encode
from gorp.errors import ConfigError, ModelError
from gorp.layers.inputs import input_moments
from gorp.layers.lora import LoraSettings
from gorp.protection.coverage import covered
from tests.runs import fresh, rows, tiny, tokenizer, train


def batch_of_task_one() -> dict[str, torch.Tensor]:
    """Its rows as the Trainer sees them."""
    encoded = encode(rows(1), tokenizer("llama"), encoder_decoder=False, encoding=Encoding())
    return Collator(pad_token_id=tokenizer("llama").pad_token_id)(list(encoded))


class EachStep(TrainerCallback):
    """Calls `look` when the gradients are ready, and after the step."""

    def __init__(self, look):
        self.look, self.calls = look, 0

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.look()
        self.calls += 1

    def on_step_end(self, args, state, control, **kwargs):
        self.look()


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_in_strict_mode_nothing_that_is_trained_touches_s_at_any_step(family, tmp_path):
    model = tiny(family)
    method = fresh("gorp", model, lora=LoraSettings(target_modules="all-linear"), full_modules="all-linear")
    train(model, method, 1, tmp_path)

    def look():
        for name in method.memory:
            pair, layer = method.task.pairs[name], method.task.cores[name]
            basis = method.memory.basis(name, pair.down)
            assert basis.shape[1] > 0
            assert (pair.down @ basis).norm() <= 1e-6 * pair.down.norm()
            assert (layer.right.mT @ basis).norm() < 1e-5

    watch = EachStep(look)
    train(model, method, 2, tmp_path, callbacks=(watch,))
    assert watch.calls == 8


@pytest.mark.parametrize("full", ["none", "all-linear"])
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_from_the_second_task_on_the_rows_of_a_are_the_tasks_leading_inputs_outside_s_and_stay(family, full, tmp_path):
    model = tiny(family)
    method = fresh("gorp", model, lora=LoraSettings(target_modules="all-linear", r=3), full_modules=full)
    first = EachStep(lambda: [pytest.fail(n) for n, p in method.task.pairs.items() if not p.down.requires_grad])
    train(model, method, 1, tmp_path, callbacks=(first,))
    assert first.calls == 8
    seen: dict[str, list[torch.Tensor]] = {}

    def look():
        for name, pair in method.task.pairs.items():
            seen.setdefault(name, []).append(pair.down.detach().clone())
            assert pair.down.grad is None and pair.up.requires_grad

    bases = {name: basis.clone() for name, basis in method.memory_tensors().items()}
    train(model, method, 2, tmp_path, callbacks=(EachStep(look),))
    assert seen.keys() == bases.keys()
    for name, downs in seen.items():
        assert all(torch.equal(down, downs[0]) for down in downs)
        assert (downs[0] @ bases[name]).norm() <= 1e-6 * downs[0].norm()
        unit = torch.nn.functional.normalize(downs[0][downs[0].norm(dim=1) > 0], dim=1)
        torch.testing.assert_close(unit @ unit.mT, torch.eye(len(unit)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_an_adapter_whose_rows_are_fixed_leaves_no_input_to_be_kept(family, tmp_path):
    """Its A has no gradient, and rows where only rounding is left are zero, so that nobody has to look for it."""
    model = tiny(family)
    method = fresh("gorp", model, lora=LoraSettings(target_modules="all-linear"), full_modules="none")
    counts: list[int] = []
    for index in (1, 2):
        count = EachStep(lambda: counts.append(len(method.task.row_watches)))
        train(model, method, index, tmp_path, callbacks=(count,))
    assert len(counts) >= 16 and not any(counts)


def test_a_b_whose_a_is_fixed_has_twice_the_rate(tmp_path):
    model = tiny("llama")
    method = fresh("gorp", model, lora=LoraSettings(target_modules="all-linear"), full_modules="none")
    for index, expected in ((1, 1e-2), (2, 2e-2)):
        rates: set[float] = set()

        def look(rates=rates):
            rates.update(group.get("lr", 1e-2) for group in method.parameter_groups(model, 1e-2))

        train(model, method, index, tmp_path, callbacks=(EachStep(look),))
        assert rates == {expected}


def test_s_holds_most_of_what_a_finished_task_reads(tmp_path):
    """Of the rows that S has grown from; not only of the gradients, which the answered ones leave no trace in."""
    model = tiny("llama")
    method = fresh("gorp", model, lora=LoraSettings(target_modules="all-linear"), full_modules="all-linear")
    train(model, method, 1, tmp_path)
    layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in method.memory}
    batch = batch_of_task_one()
    for names, inputs in input_moments(model, layers, [batch]):
        for name in names:
            assert covered(method.memory.basis(name, inputs.total), inputs.total) > 0.9, name


@pytest.mark.parametrize("mode", ["strict", "paper"])
def test_no_base_weight_ever_has_a_gradient(mode, tmp_path):
    model = tiny("llama")
    method = fresh("gorp", model, mode=mode, full_modules="all-linear")
    base = dict(model.named_parameters())
    watch = EachStep(lambda: [pytest.fail(name) for name, p in base.items() if p.grad is not None])
    train(model, method, 1, tmp_path, callbacks=(watch,))
    assert watch.calls == 8 and method.deltas


@pytest.mark.parametrize("source", ["moment", "sketch", "inputs"])
def test_the_budget_is_never_exceeded(source, tmp_path):
    model = tiny("llama")
    method = fresh("gorp", model, budget=0.25, energy=0.999, threshold=1e-3, memory_source=source)
    for task in (1, 2, 1):
        facts = train(model, method, task, tmp_path).facts
        assert facts["capacity_mean"] <= facts["capacity_max"] <= 0.25
    assert facts["capacity_max"] == 0.25


def fill(method, names):
    """S of `names` becomes the whole space."""
    for name in names:
        method.memory.extend(name, torch.eye(method.weights.parameter(name).shape[1]))
        assert method.memory.capacity(name) == 1.0


def test_a_full_memory_leaves_nothing_to_learn_and_is_named_before(tmp_path):
    model, said = tiny("llama"), []
    method = fresh("gorp", model, budget=1.0, energy=0.999999)
    train(model, method, 1, tmp_path)
    free, *full = sorted(method.memory)
    fill(method, full)
    assert method.warnings(1) == method.facts()["warnings"]
    before = {name: p.clone() for name, p in model.named_parameters()}
    facts = train(model, method, 2, tmp_path, say=said.append).facts
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} <= {free}
    assert all(facts["weights"][name][key] == 0.0 for name in full for key in ("leak", "leak_served"))
    start = f"S is the whole space for {len(full)} of {len(full) + 1} weights, and a task can change nothing there: "
    assert [line for line in said if line.startswith(start + ", ".join(full[:3]) + f" and {len(full) - 3} more")]


def test_where_every_weight_is_full_the_task_is_refused_and_a_lower_budget_lets_it_learn(tmp_path):
    model = tiny("llama")
    method = fresh("gorp", model, budget=1.0, energy=0.999999)
    train(model, method, 1, tmp_path)
    fill(method, list(method.memory))
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(
        ConfigError, match=r"S is the whole space for every trained weight \(6 of them\).* lower method"
    ):
        train(model, method, 2, tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())

    lower = fresh("gorp", model, budget=0.5, energy=0.999999)
    lower.load_state_dict(method.state_dict())
    facts = train(model, lower, 2, tmp_path).facts
    assert facts["leak"] <= 1e-5 and any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(facts["weights"][name]["released"] >= method.memory.size(name) / 2 for name in method.memory)


def test_in_paper_mode_full_cores_stand_still_and_adapters_do_not(tmp_path):
    model = tiny("llama")
    method = fresh("gorp", model, mode="paper", rank=2)
    train(model, method, 1, tmp_path)
    cores = [name for name in method.memory if name.endswith("::core")]
    for name in cores:
        method.memory.extend(name, torch.eye(2))
    fill(method, [name for name in method.memory if "::" not in name])
    assert len(cores) == 2 and any("for 2 of 6 weights" in line and "gate_proj" in line for line in method.warnings(1))
    alone = fresh("gorp", model, mode="paper", rank=2, lora=LoraSettings(target_modules="none"))
    alone.load_state_dict(method.state_dict())
    with pytest.raises(ConfigError, match="S is the whole space for every trained weight"):
        alone.warnings(1)


def test_what_is_released_at_the_budget_is_counted(tmp_path):
    """Of each weight: directions before, plus those that the task brought, less those that are there afterwards."""
    model, said = tiny("llama"), []
    method = fresh("gorp", model, budget=0.25)
    train(model, method, 1, tmp_path)
    old = method.memory_tensors()
    assert any("the budget may be reached in the next task" in line for line in method.facts()["warnings"])
    facts = train(model, method, 2, tmp_path, say=said.append).facts
    assert any("the budget may be reached in the next task" in line for line in said)
    new, lost = method.memory_tensors(), 0
    for name, basis in old.items():
        kept = torch.linalg.svdvals(new[name].mT @ basis)  # columns of S stay as they are, or go
        gone = basis.shape[1] - int((kept > 0.99).sum())
        assert facts["weights"][name]["released"] == gone
        assert (facts["weights"][name]["released_energy"] > 0) == (gone > 0)
        lost += gone
    assert facts["released"] == lost > 0
    assert any(f"the budget is reached: {lost} directions of earlier tasks" in line for line in facts["warnings"])
    assert method.memory.cap(name) == 8 and facts["weights"][name]["directions"] <= 8


def test_paper_mode_tells_cores_from_inputs(tmp_path):
    """k-dimensional coordinates are not n-dimensional ones, and there is no leak where no inputs are held."""
    model = tiny("llama")
    method = fresh("gorp", model, mode="paper")
    for task in (1, 2):
        facts = train(model, method, task, tmp_path).facts
    cores = {name for name in facts["weights"] if name.endswith("::core")}
    assert len(cores) == 2 and len(facts["weights"]) == 6
    shares = {name: x.shape[1] / x.shape[0] for name, x in method.memory_tensors().items()}
    assert facts["core_capacity_max"] == max(shares[name] for name in cores)
    assert facts["capacity_max"] == max(share for name, share in shares.items() if name not in cores)
    assert facts["rank_capacity_max"] is None
    assert all((entry["leak"] is None) == (name in cores) for name, entry in facts["weights"].items())
    assert facts["leak_unmeasured"].startswith("2 of 6 weights have no leak: in paper mode ")


@pytest.mark.parametrize("mode", ["strict", "paper"])
@pytest.mark.parametrize(("lora", "full"), [("none", "auto"), ("auto", "none")])
def test_either_branch_works_alone(mode, lora, full, tmp_path):
    model = tiny("t5")
    method = fresh("gorp", model, lora=LoraSettings(target_modules=lora), full_modules=full, mode=mode)
    for task in (1, 2):
        train(model, method, task, tmp_path)
    kinds = {name.split(".")[-3] for name in method.deltas}
    assert kinds == ({"EncDecAttention"} if lora == "none" else {"SelfAttention"})
    assert len(method.memory) == len(method.deltas)


def test_without_any_branch_there_is_nothing_to_train():
    with pytest.raises(ConfigError, match="nothing to train"):
        fresh("gorp", tiny("llama"), lora=LoraSettings(target_modules="none"), full_modules="none")


@pytest.mark.parametrize("side", ["input", "rank"])
def test_paper_mode_keeps_s_in_the_coordinates_it_is_told(side, tmp_path):
    model = tiny("llama")
    method = fresh("gorp", model, lora=LoraSettings(r=6), mode="paper", adapter_side=side)
    for task in (1, 2):
        train(model, method, task, tmp_path)
    dimensions = {name.partition("weight")[2]: x.shape[0] for name, x in method.memory_tensors().items()}
    assert dimensions == ({"": 32, "::core": 4} if side == "input" else {"::rank": 6, "::core": 4})


def test_a_memory_of_another_model_is_refused_and_named(tmp_path):
    model = tiny("llama")
    method = fresh("gorp", model)
    train(model, method, 1, tmp_path, max_steps=2)
    state, other = method.state_dict(), tiny("t5")
    stranger = fresh("gorp", other)
    stranger.load_state_dict(state)
    with pytest.raises(ModelError, match=r"model\.layers\.0.* this base model has no such parameter.*memory made for"):
        train(other, stranger, 2, tmp_path)


def test_a_memory_of_the_other_side_is_refused_and_named(tmp_path):
    model = tiny("llama")
    method = fresh("gorp", model)
    name = "model.layers.0.self_attn.v_proj.weight"  # 16 outputs, 32 inputs
    method.memory.extend(name, torch.randn(3, 16))
    with pytest.raises(
        ModelError, match=rf"{name}: the memory holds directions of R\^16, but .* 32 inputs.*output side"
    ):
        train(model, method, 2, tmp_path)


class Steps(TrainerCallback):
    """Counts finished optimizer steps."""

    count = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.count += 1


class TestOptimizers:
    @pytest.mark.parametrize(
        "options", [{"memory_source": "moment"}, {"mode": "paper"}, {"mode": "paper", "memory_source": "sketch"}]
    )
    def test_one_without_a_first_moment_is_refused_after_one_step(self, options, tmp_path):
        model, steps = tiny("llama"), Steps()
        with pytest.raises(ConfigError, match=r"but SGD keeps none\. Use an optimizer with momentum"):
            train(model, fresh("gorp", model, **options), 1, tmp_path, optim="sgd", callbacks=(steps,))
        assert steps.count == 1

    @pytest.mark.parametrize(
        ("training", "options"),
        [
            ({"optim": "adamw_torch"}, {}),
            ({"optim": "adafactor"}, {}),
            ({"optim": "sgd"}, {}),
        ],
    )
    def test_trains_and_protects_with_any_other(self, training, options, tmp_path):
        self.two_tasks(tmp_path, training, options)

    def test_momentum_is_a_first_moment(self, tmp_path, monkeypatch):
        momentum = staticmethod(lambda args, model: (torch.optim.SGD, {"lr": args.learning_rate, "momentum": 0.9}))
        monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", momentum)
        self.two_tasks(tmp_path, {}, {"memory_source": "moment"})

    def two_tasks(self, folder, training, options):
        model = tiny("llama")
        method = fresh("gorp", model, **options)
        for task in (1, 2):
            facts = train(model, method, task, folder, learning_rate=2e-2, **training).facts
            assert facts["capacity_max"] > 0
        assert 0 < facts["leak"] <= 1e-5
        assert all(delta.dense().norm() > 0 for delta in method.deltas.values())


def test_a_gradient_that_is_not_finite_leaves_the_old_frame_and_the_sketch(tmp_path):
    model = tiny("llama")
    method = fresh("gorp", model, memory_source="sketch", staggered=False, refresh_every=1)

    class Overflow(TrainerCallback):
        """In step 3 the loss is finite and gradients are not, as happens under float16; the step is left out."""

        def on_step_begin(self, args, state, control, **kwargs):
            self.overflows = state.global_step == 2
            if self.overflows:
                self.before = self.frame()
                self.handle = model.model.layers[0].mlp.down_proj.register_forward_hook(blow_up)

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if self.overflows:
                self.handle.remove()
                assert all(torch.equal(x, y) for x, y in zip(self.frame(), self.before, strict=True))
                assert all(torch.isfinite(sketch.rows).all() for sketch in method.task.summary._sketches.values())
                model.zero_grad()

        def frame(self):
            layer = method.task.cores["model.layers.0.mlp.gate_proj.weight"]
            return layer.left.clone(), layer.right.clone()

    def blow_up(module, args, output):
        output.register_hook(lambda gradient: gradient * torch.inf)

    result = train(model, method, 1, tmp_path, callbacks=(Overflow(),), max_grad_norm=0.0)
    assert result.steps == 8
    assert all(torch.isfinite(p).all() for p in model.parameters())
