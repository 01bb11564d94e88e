"""The whole demo on a tiny random model, and equal numbers from two runs."""

import json
import math
from types import SimpleNamespace

import pytest

from gorp.demo import DemoSettings, demo_tasks, run_demo
from gorp.demo import run as run_module
from gorp.demo.run import COMPARED, TASKS
from gorp.evaluation import score_task, summary
from tests.workspace.project import save_model


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> DemoSettings:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return DemoSettings(model=str(folder), train_rows=16, eval_rows=7, epochs=1, batch_size=8)


@pytest.fixture(scope="module")
def results(settings):
    return run_demo(settings)


def test_the_tasks_are_the_embedded_ones_balanced_over_their_labels(settings):
    tasks = demo_tasks(settings)
    assert tuple(task.name for task in tasks) == TASKS
    for task in tasks:
        assert (len(task.train), len(task.eval), task.dev, task.metric) == (16, 7, None, "label_ranking")
        assert len(set(task.eval["completion"])) == 7  # no label twice while others are missing
        assert all(prompt.endswith("\nAnswer:") for prompt in task.train["prompt"])


def test_both_methods_start_from_the_same_base(results):
    assert tuple(results) == COMPARED and set(COMPARED) == {"gorp", "sequential_lora"}
    first, second = (result.matrix for result in results.values())
    assert first.R[0].tolist() == second.R[0].tolist() and not any(map(math.isnan, first.R[0]))


def test_a_task_is_scored_from_its_own_row_on(results):
    for result in results.values():
        for row in range(1, 5):
            assert [not math.isnan(score) for score in result.matrix.R[row]] == [task < row for task in range(4)]


def test_to_dict_has_the_documented_keys_and_is_valid_json(results):
    for result in results.values():
        value = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert set(value) == {"matrix", "ap", "bwt", "la", "seconds"}
        assert [len(row) for row in value["matrix"]] == [4] * 5 and value["seconds"] > 0
        assert {name: value[name] for name in ("ap", "bwt", "la")}.items() <= summary(result.matrix).items()


def test_seconds_count_the_same_work_for_both(settings, monkeypatch):
    """With a clock that advances one second per scored task: 1 + 2 + 3 + 4 for each method, none for the base model."""
    clock = [0.0]

    def scoring(*args, **kwargs):
        clock[0] += 1
        return score_task(*args, **kwargs)

    monkeypatch.setattr(run_module, "score_task", scoring)
    monkeypatch.setattr("gorp.sequence.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert [result.seconds for result in run_demo(settings).values()] == [10.0, 10.0]
    assert clock == [24.0]


def test_the_samples_are_those_of_the_first_task_after_the_last(results):
    for result in results.values():
        assert len(result.samples) == 7
        correct = sum(sample["correct"] for sample in result.samples)
        assert result.matrix.R[4, 0] == 100 * correct / 7


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(settings, results):
    for name, result in run_demo(settings).items():
        assert result.matrix.to_dict() == results[name].matrix.to_dict()
