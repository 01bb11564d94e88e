"""Processes that share a folder run each cell once, also after one of them was killed."""

import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from gorp.benchmark import Cell, best_trial, collect, run_grid
from gorp.benchmark import grid as grid_module
from gorp.storage import read_json, write_json


CELL = Cell(method="gorp", model="m", order=("a",))
RESULT = f"{CELL.key()}.json"
CLAIM = f"{CELL.key()}.claim"


def run(folder, *, during=lambda: None, cells=(CELL,)):
    """Return the keys of the cells that were run."""
    ran = []

    def one(cell, data):
        ran.append(cell.key())
        during()
        return {"value": 1}

    run_grid(cells, folder, folder, report=lambda *_: None, run=one)
    return ran


def test_each_cell_is_run_once_and_leaves_only_its_result(tmp_path):
    assert run(tmp_path) == [CELL.key()] and run(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == [RESULT]


def test_the_best_trial_is_the_setting_with_the_best_mean_over_its_seeds(tmp_path):
    def trial(rate, seed, ap):
        cell = replace(CELL, training={"learning_rate": rate}, seed=seed)
        write_json(tmp_path / f"{cell.key()}.json", {"cell": asdict(cell), "ap": ap})
        return cell

    cells = [trial(1e-3, 0, 50.0), trial(1e-3, 1, 30.0), trial(2e-3, 0, 45.0), trial(2e-3, 1, 41.0)]
    missing = replace(CELL, seed=7)
    results = collect([cells[2], missing, *cells], tmp_path)
    assert [result["ap"] for result in results] == [45.0, 50.0, 30.0, 45.0, 41.0]
    assert best_trial(results[1:])["cell"]["training"] == {"learning_rate": 2e-3}


@pytest.mark.parametrize("left", ["", "0", "999999999", "mine"])
def test_a_leftover_claim_file_blocks_nothing(tmp_path, left):
    (tmp_path / CLAIM).write_text(str(os.getpid()) if left == "mine" else left)
    assert run(tmp_path) == [CELL.key()]
    assert [path.name for path in tmp_path.iterdir()] == [RESULT]


def test_a_cell_that_another_process_runs_is_skipped(tmp_path):
    nested = []
    assert run(tmp_path, during=lambda: nested.append(run(tmp_path))) == [CELL.key()]
    assert nested == [[]]


def test_a_killed_process_releases_its_cell(tmp_path):
    code = (
        "import os, sys, pathlib; from gorp.benchmark import Cell, run_grid; folder = pathlib.Path(sys.argv[1]);"
        "cells = [Cell(method='gorp', model='m', order=('a',))];"
        "run_grid(cells, folder, folder, report=None, run=lambda *_: os._exit(9))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    assert (tmp_path / CLAIM).exists()
    assert run(tmp_path) == [CELL.key()]


def test_a_cell_that_was_finished_before_the_claim_is_not_run_again(tmp_path, monkeypatch):
    claim = grid_module._claim

    def late(path):
        write_json(tmp_path / RESULT, {"value": "of the other"})
        return claim(path)

    monkeypatch.setattr(grid_module, "_claim", late)
    assert run(tmp_path) == []
    assert read_json(tmp_path / RESULT) == {"value": "of the other"}


def test_a_cell_that_failed_can_be_run_again(tmp_path):
    def fail():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run(tmp_path, during=fail)
    assert list(tmp_path.iterdir()) == []
