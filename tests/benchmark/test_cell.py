"""One cell: the loop over tasks with any train and score functions, and the file names of results."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gorp.benchmark import Cell, learn_in_turn, run_cell
from gorp.benchmark.cell import load
from gorp.data import Encoding
from gorp.storage import read_json
from gorp.training import train_task
from tests.models_small import tiny_t5
from tests.runs import rows
from tests.tokenizers_small import t5_tokenizer
from tests.workspace.project import save_model


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def learn(cell):
    """Return the result, the trained (task, rows), and the scored tasks, in order."""
    tokenizer = t5_tokenizer()
    model = tiny_t5(tokenizer)
    tasks = [SimpleNamespace(name=name, train=rows(number, 8)) for number, name in enumerate(cell.order, 1)]
    trained, scored = [], []

    def train(method, task, data, **where):
        trained.append((task.name, len(data), where["name"], where["index"], where["num_tasks"]))
        return train_task(model, tokenizer, method, data, encoding=Encoding(), **where)

    def score(served, task, row):
        scored.append(task.name)
        return float(len(scored)), 5

    return learn_in_turn(cell, model, tasks, train=train, score=score, started=0.0), trained, scored


def cell(**fields):
    training = {"per_device_train_batch_size": 4, "use_cpu": True}
    return Cell(**{"method": "gorp", "model": "tiny", "order": ("a", "b"), "training": training} | fields)


def test_tasks_are_trained_in_turn_and_scored_where_the_metrics_need_it():
    result, trained, scored = learn(cell())
    assert trained == [("a", 8, "a", 1, 2), ("b", 8, "b", 2, 2)]
    assert scored == ["a", "b", "a", "b", "a", "b"]
    assert result["matrix"]["R"] == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert (result["steps"], result["ap"], result["bwt"]) == (4, 5.5, 2.0)
    assert 0 <= result["leak"] <= 1e-5 and result["facts"]["mode"] == "strict"


def test_a_trial_scores_the_diagonal_and_the_end():
    result, _, scored = learn(cell(cells="ends"))
    assert scored == ["a", "a", "b"]
    assert result["matrix"]["R"] == [[None, None], [1.0, None], [2.0, 3.0]]


def test_a_joint_method_trains_once_on_all_rows():
    _, trained, scored = learn(cell(method="multi_task"))
    assert trained == [("b", 16, "b", 2, 2)] and scored == ["a", "b", "a", "b"]


@pytest.mark.parametrize(("split", "asked"), [("dev", 3), ("eval", 5)])
def test_a_cell_loads_and_limits_its_tasks_and_scores_its_split(tmp_path, split, asked):
    save_model(tmp_path / "model", family="llama")
    folder = tmp_path / "data" / "weather"
    folder.mkdir(parents=True)
    (folder / "labels.json").write_text('["good", "bad"]')
    (folder / "task.json").write_text('{"category": "SC", "dataset": "weather"}')
    lines = [json.dumps({"sentence": f"light {i}", "label": ("good", "bad")[i % 2]}) + "\n" for i in range(30)]
    (folder / "train.jsonl").write_text("".join(lines[:20]))
    (folder / "test.jsonl").write_text("".join(lines[20:]))
    sizes = {"train_rows": 8, "eval_rows": 5, "dev_rows": 3, "max_prompt_tokens": 64, "metric": "label_ranking"}
    one = cell(method="incremental_lora", model=str(tmp_path / "model"), order=("weather",), split=split, **sizes)
    result = run_cell(one, tmp_path / "data")
    assert result["steps"] == 2 and result["cell"]["split"] == split
    assert result["ap"] == result["matrix"]["R"][1][0] in [100 * right / asked for right in range(asked + 1)]


def test_random_weights_depend_on_the_seed_and_not_on_the_folder(tmp_path):
    save_model(tmp_path)
    trained, first, again, other = (
        load(cell(model=str(tmp_path), **fields))[0].get_input_embeddings().weight
        for fields in ({}, *({"random_weights": True, "seed": seed} for seed in (1, 1, 2)))
    )
    assert torch.equal(first, again) and first.shape == trained.shape
    assert not torch.equal(first, trained) and not torch.equal(first, other)


def test_a_result_has_all_documented_fields():
    found = set(learn(cell())[0])
    assert found == {
        *("cell", "matrix", "ap", "ap_weighted", "bwt", "fwt", "forgetting", "la"),
        *("train_seconds", "boundary_seconds", "eval_seconds", "seconds", "steps", "peak_bytes"),
        *("leak", "facts", "environment"),
    }


def test_the_file_name_of_a_cell_does_not_change():
    assert cell().key() == "gorp-seed0-07f96e3918"
    paths = list(RESULTS.glob("*/*/*.json"))
    if not paths:
        pytest.skip("no finished results in this copy")
    for path in paths:
        block = read_json(path)["cell"]
        assert Cell(**block | {"order": tuple(block["order"])}).key() == path.stem
