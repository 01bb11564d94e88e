"""What GORP reports of each earlier task after real training: near the exact values, after reloads, after errors."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

import gorp.protection.space
from gorp.layers.inputs import InputSums, weight_inputs
from gorp.layers.lora import LoraSettings
from gorp.methods.base import Method
from gorp.protection.coverage import Coverage, covered
from tests.runs import assert_equal, fresh, rows, through_a_file, tiny, train


KEYS = {f"{key}{end}" for key in ("coverage", "output_change") for end in ("", "_worst", "_worst_weight")}


@dataclass
class Run:
    """Task 1, task 2, and task 1 again under another name."""

    method: Method
    facts: list[dict]
    """After each task."""
    sums: list[dict[str, InputSums]]
    """What each read at its end."""
    weights: list[dict[str, Tensor]]
    """As served after each."""


def of(method, model) -> dict[str, Tensor]:
    return {name: model.get_parameter(name).detach().clone() for name in method.deltas}


@cache
def trained(budget: float = 0.75) -> Run:
    model = tiny("llama")
    method = fresh("gorp", model, lora=LoraSettings(target_modules="all-linear"), budget=budget, refresh_every=4)
    run, read = Run(method, [], [], []), []

    def spy(*args, **options):
        read.append({})
        for names, sums in weight_inputs(*args, **options):
            read[-1] |= dict.fromkeys(names, sums)
            yield names, sums

    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(gorp.protection.space, "weight_inputs", spy)
        for index in (1, 2, 3):
            run.facts.append(train(model, method, index, Path(folder), data=rows(2 - index % 2)).facts)
            run.sums.append(read[-1])  # the last is the one at the task's end
            run.weights.append(of(method, model))
    return run


def test_after_every_task_all_tasks_so_far_are_told_of_by_name():
    for count, facts in enumerate(trained().facts, 1):
        assert list(facts["earlier"]) == ["task1", "task2", "task3"][:count]
        assert all(told.keys() == KEYS for told in facts["earlier"].values())
        newest = facts["earlier"][f"task{count}"]
        assert newest["output_change"] == newest["output_change_worst"] == 0.0
        assert 0.5 < newest["coverage_worst"] <= newest["coverage"] <= 1.0


def test_coverage_is_that_of_the_rows_read_while_nothing_is_released():
    run = trained()
    assert run.facts[-1]["released"] == 0
    for index in (1, 2, 3):
        told = run.facts[index - 1]["earlier"][f"task{index}"]
        assert run.facts[-1]["earlier"][f"task{index}"]["coverage"] == told["coverage"]
    held = {name: covered(run.method.memory.basis(name, one.total), one.total) for name, one in run.sums[-1].items()}
    assert told["coverage"] == pytest.approx(sum(held.values()) / len(held))
    assert (told["coverage_worst"], told["coverage_worst_weight"]) == min((v, k) for k, v in held.items())


def test_output_change_is_near_the_exact_one_of_the_rows_read():
    run = trained()
    for index in (0, 1):
        moved = outputs = 0.0
        for name, sums in run.sums[index].items():
            then, now = run.weights[index][name], run.weights[-1][name]
            mean = sums.first / sums.count
            centred = sums.total - sums.count * torch.outer(mean, mean)
            moved += torch.trace((now - then) @ sums.total @ (now - then).mT).item()
            outputs += torch.trace(then @ centred @ then.mT).item()
        told = run.facts[-1]["earlier"][f"task{index + 1}"]
        print(f"\ntask{index + 1}: told {told['output_change']:.4f}, exact {(moved / outputs) ** 0.5:.4f}")
        assert told["output_change"] == pytest.approx((moved / outputs) ** 0.5, rel=0.25)
        assert told["output_change_worst"] >= told["output_change"] > 0


def test_at_the_budget_what_is_told_stays_below_what_s_holds():
    run = trained(budget=0.2)
    assert run.facts[1]["released"] > 0  # of the first task's directions
    fell = []
    for index, sums in enumerate(run.sums, 1):
        held = [covered(run.method.memory.basis(name, one.total), one.total) for name, one in sums.items()]
        first, last = (facts["earlier"][f"task{index}"]["coverage"] for facts in (run.facts[index - 1], run.facts[-1]))
        assert last <= sum(held) / len(held) + 1e-5
        fell.append(first - last)
    assert fell[0] > 0 and min(fell) >= 0 and fell[-1] == 0


def test_another_process_tells_the_same(tmp_path):
    run, model = trained(), tiny("llama")
    method = fresh("gorp", model, lora=LoraSettings(target_modules="all-linear"), refresh_every=4)
    method.load_state_dict(through_a_file(run.method.state_dict(), tmp_path / "method.safetensors"))
    assert method.facts()["earlier"] == run.facts[-1]["earlier"]


def test_an_error_while_a_task_is_taken_in_leaves_what_was_told_before(tmp_path, monkeypatch):
    model = tiny("llama")
    method = fresh("gorp", model)
    train(model, method, 1, tmp_path)
    before = {key: value.clone() for key, value in method.space.coverage.state_dict().items()}
    calls = []

    def add_task(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return plain(self, *args, **kwargs)

    plain = Coverage.add_task
    monkeypatch.setattr(Coverage, "add_task", add_task)
    with pytest.raises(RuntimeError, match="out of luck"):
        train(model, method, 2, tmp_path, num_train_epochs=0.5)
    assert len(calls) == 2
    assert_equal(method.space.coverage.state_dict(), before)


@pytest.mark.parametrize("options", [{"memory_source": "sketch", "adapter_rows": "trained"}, {"mode": "paper"}])
def test_where_no_inputs_are_read_nothing_is_told(options, tmp_path):
    model = tiny("llama")
    facts = train(model, fresh("gorp", model, **options), 1, tmp_path, num_train_epochs=0.5).facts
    assert facts["earlier"] == {}
