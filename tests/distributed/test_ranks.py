"""Two ranks that share a batch are one rank that has it all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gorp.storage import read_tensors
from tests.runs import assert_equal, tiny


SCRIPT = Path(__file__).with_name("train_two_tasks.py")
ROOT = SCRIPT.parents[2]


def launch(ranks: int, folder: Path, name: str, family: str) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), name, family]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("gorp", "llama"),
        pytest.param("gorp", "t5", marks=pytest.mark.slow),
        pytest.param("protected_full", "llama", marks=pytest.mark.slow),
        pytest.param("olora", "t5", marks=pytest.mark.slow),
        pytest.param("olora", "llama", marks=pytest.mark.slow),
        pytest.param("ewc", "llama", marks=pytest.mark.slow),
        pytest.param("ewc", "t5", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_train_what_one_does(name, family, tmp_path):
    for ranks in (1, 2):
        launch(ranks, tmp_path / str(ranks), name, family)
    one, two = tmp_path / "1", tmp_path / "2"
    for file in ("model", "live", "method"):  # weights, bases, frames, moments' factors: the same bits on both ranks
        assert_equal(read_tensors(two / f"{file}1.safetensors")[0], read_tensors(two / f"{file}0.safetensors")[0])
    alone, shared = (read_tensors(folder / "model0.safetensors")[0] for folder in (one, two))
    start = {key: p.detach() for key, p in tiny(family).named_parameters()}
    norms = [
        torch.cat([(a[key] - b[key]).flatten() for key in start]).norm().item()
        for a, b in ((alone, shared), (alone, start))
    ]
    size = torch.cat([x.flatten() for x in alone.values()]).norm().item()
    print(f"\n{name}, {family}: {norms[0] / size:.1e} of the weights, {norms[0] / norms[1]:.1e} of their change")
    assert norms[1] > 0.01 * size
    # S, and A of gorp, are eigenvectors of what two tasks read: rounding is divided by the gaps of their values.
    assert norms[0] <= (1e-4 if name in ("gorp", "protected_full") else 1e-5) * size
