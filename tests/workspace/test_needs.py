"""Methods that need the task's name or the number of tasks, and one whose result is not a delta."""

from typing import ClassVar

import pytest

from gorp.errors import ConfigError
from gorp.methods import METHODS
from gorp.methods.lora import LoraMethod
from gorp.workspace import Workspace, evaluate_version, load_config, run_sequence, status
from tests.methods.per_task import PerTaskLora
from tests.workspace.project import make_project, task, write_config
from tests.workspace.test_changes import Said


class Planner(LoraMethod):
    """Records the number of tasks that it receives."""

    name = "planner"
    needs_num_tasks = True
    received: ClassVar[list[int | None]] = []

    def begin_task(self, model, task):
        super().begin_task(model, task)
        self.received.append(task.num_tasks)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for method in (PerTaskLora, Planner):
        monkeypatch.setitem(METHODS, method.name, method)


def test_each_task_is_scored_with_its_own_adapter(tmp_path):
    """The answers to task one are the same after task two, although no delta is added to the base weights."""
    said, work = Said(), tmp_path / "work"
    path = make_project(tmp_path, method={"name": "per_task_lora"}, lora={"target_modules": "all-linear"})
    config = load_config(path)
    run_sequence(config, work, progress=said)
    assert any("`per_task_lora` cannot be merged into one plain model" in line for line in said.lines)
    before, after = (version.record["metrics"]["scores"]["one"] for version in Workspace(work).versions()[1:])
    assert before == after
    samples = [work / "eval/samples" / f"{version}-one.jsonl" for version in ("v1", "v2")]
    assert samples[0].read_bytes() == samples[1].read_bytes()
    scores = status(work)["matrix"]["R"]
    assert evaluate_version(work)["scores"]["two"]["score"] == scores[2][1]
    assert status(work)["matrix"]["R"] == scores


def test_a_method_gets_the_number_of_tasks_in_the_yaml_and_no_task_can_be_added(tmp_path):
    Planner.received.clear()
    work = tmp_path / "work"
    run_sequence(load_config(make_project(tmp_path, method={"name": "planner"})), work)
    assert Planner.received == [2, 2]
    (tmp_path / "three.jsonl").write_bytes((tmp_path / "two.jsonl").read_bytes())
    (tmp_path / "three_eval.jsonl").write_bytes((tmp_path / "two_eval.jsonl").read_bytes())
    more = write_config(tmp_path, method={"name": "planner"}, tasks=[task("one"), task("two"), task("three")])
    with pytest.raises(ConfigError, match=r"tasks: 3 tasks are listed, but the method `planner` was started with 2\."):
        run_sequence(load_config(more), work)
