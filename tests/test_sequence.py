"""The stages of a sequence, and the loop: held to the same trainings written out one by one."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from gorp.data import Encoding
from gorp.layers.lora import LoraSettings
from gorp.methods import METHODS, build_method
from gorp.progress import Progress
from gorp.sequence import JOINT, learn_sequence, stages
from gorp.training import train_task
from tests.runs import TRAINING, assert_equal, fresh, rows, tiny, tokenizer, train


TASKS = [SimpleNamespace(name=f"task{number}", train=rows(number, 8 * number)) for number in (1, 2)]


def test_a_task_is_a_stage_and_those_that_are_learned_are_left_out():
    first, second = stages(TASKS, joint=False, seed=0)
    assert [(s.name, s.index, s.contains, s.tasks) for s in (first, second)] == [
        ("task1", 1, ["task1"], TASKS[:1]),
        ("task2", 2, ["task1", "task2"], TASKS[1:]),
    ]
    assert first.rows is TASKS[0].train
    without_rows = SimpleNamespace(name="task1", train=None)
    assert stages([without_rows, TASKS[1]], joint=False, seed=0, learned=["task1"]) == [second]
    assert stages(TASKS, joint=False, seed=0, learned=["task1", "task2"]) == []


def test_a_joint_method_has_one_stage_with_every_row_once_until_all_are_learned():
    [one] = stages(TASKS, joint=True, seed=3)
    assert (one.name, one.index, one.contains, one.tasks) == (JOINT, 1, ["task1", "task2"], TASKS)
    prompts = [*TASKS[0].train["prompt"], *TASKS[1].train["prompt"]]
    assert sorted(one.rows["prompt"]) == sorted(prompts) and one.rows["prompt"] != prompts
    [again] = stages(TASKS, joint=True, seed=3, learned=["task1"])
    assert again.rows["prompt"] == one.rows["prompt"]
    assert stages(TASKS, joint=True, seed=3, learned=["task1", "task2"]) == []


class Heard(Progress):
    def __init__(self):
        self.lines = []

    @contextmanager
    def training(self, name):
        self.lines.append(name)
        yield TrainerCallback()

    def matrix(self, matrix):
        self.lines.append(matrix)


@pytest.mark.parametrize("name", ["gorp", "incremental_lora"])
def test_the_loop_leaves_what_its_trainings_leave_one_by_one(tmp_path, name):
    expected_model = tiny("t5")
    expected = fresh(name, expected_model)
    for number, task in enumerate(TASKS, 1):
        train(expected_model, expected, number, tmp_path / task.name, data=task.train, num_train_epochs=1)

    model, method = tiny("t5"), build_method(name, expected.config, expected.lora)
    asked, heard = [], Heard()

    def train_stage(stage, **where):
        where |= {"name": stage.name, "index": stage.index, "seed": 7, "training": TRAINING | {"num_train_epochs": 1}}
        return train_task(model, tokenizer("t5"), method, stage.rows, encoding=Encoding(max_prompt_tokens=64), **where)

    def score(served, task, row):
        asked.append((row, task.name))
        return float(len(asked)), 5

    learned = learn_sequence(
        method, model, TASKS, train=train_stage, score=score, columns=lambda row: range(row), seed=0, progress=heard
    )
    assert_equal(method.state_dict(), expected.state_dict())
    assert_equal(model.state_dict(), expected_model.state_dict())
    assert asked == [(1, "task1"), (2, "task1"), (2, "task2")]
    assert learned.matrix.to_dict()["R"] == [[None, None], [1.0, None], [2.0, 3.0]]
    assert [result.task for result in learned.results] == ["task1", "task2"]
    assert [line for line in heard.lines if isinstance(line, str)] == [f"{name} on task1", f"{name} on task2"]
    assert len(heard.lines) == 4 and 0 <= learned.scoring_seconds <= learned.seconds


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_built_from_its_name_its_configuration_and_its_adapters(name):
    config, lora = METHODS[name].Config(), LoraSettings(r=3)
    method = build_method(name, config, lora)
    assert type(method) is METHODS[name] and method.config == METHODS[name](config).config
    assert getattr(method, "lora", None) == (lora if METHODS[name].uses_lora else None)
