"""Methods that ask something of their surroundings: the task's name, the number of tasks; and one that is no delta."""

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
    """Writes down how many tasks it was told of."""

    name = "planner"
    needs_num_tasks = True
    told: ClassVar[list[int | None]] = []

    def begin_task(self, model, task):
        super().begin_task(model, task)
        self.told.append(task.num_tasks)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for method in (PerTaskLora, Planner):
        monkeypatch.setitem(METHODS, method.name, method)


def test_a_workspace_asks_each_task_of_its_own_adapter(tmp_path):
    """What task one answered after it was learned it answers after task two, though the base model never moves."""
    said, work = Said(), tmp_path / "work"
    path = make_project(tmp_path, method={"name": "per_task_lora"}, lora={"target_modules": "all-linear"})
    config = load_config(path)
    run_sequence(config, work, progress=said)
    assert any("`per_task_lora` learns is no one plain model" in line for line in said.lines)
    before, after = (version.record["metrics"]["scores"]["one"] for version in Workspace(work).versions()[1:])
    assert before == after
    samples = [work / "eval/samples" / f"{version}-one.jsonl" for version in ("v1", "v2")]
    assert samples[0].read_bytes() == samples[1].read_bytes()
    scores = status(work)["matrix"]["R"]
    assert evaluate_version(work)["scores"]["two"]["score"] == scores[2][1]
    assert status(work)["matrix"]["R"] == scores


def test_a_workspace_plans_with_the_tasks_of_its_yaml_and_takes_no_more(tmp_path):
    Planner.told.clear()
    work = tmp_path / "work"
    run_sequence(load_config(make_project(tmp_path, method={"name": "planner"})), work)
    assert Planner.told == [2, 2]
    (tmp_path / "three.jsonl").write_bytes((tmp_path / "two.jsonl").read_bytes())
    (tmp_path / "three_eval.jsonl").write_bytes((tmp_path / "two_eval.jsonl").read_bytes())
    more = write_config(tmp_path, method={"name": "planner"}, tasks=[task("one"), task("two"), task("three")])
    with pytest.raises(ConfigError, match=r"tasks: 3 are listed, and the method `planner` has planned for 2\."):
        run_sequence(load_config(more), work)
