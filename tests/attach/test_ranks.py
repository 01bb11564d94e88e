"""Several ranks train what one does, with the launchers that Hugging Face's users have; and resume to the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gorp.storage import read_tensors
from gorp.weights.delta import unpack_deltas
from tests.attach.runs import version
from tests.runs import assert_equal


pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("train_tasks.py")
ROOT = SCRIPT.parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ACCELERATE = [
    "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--mixed_precision", "no",
    "--dynamo_backend", "no", "--num_processes",
]  # fmt: skip


def launch(folder: Path, *words: str, ranks: int, launcher: list[str] | None = None) -> dict[str, float]:
    """Run `train_tasks.py` on so many ranks; return what rank 0 said last."""
    launcher = launcher or (TORCHRUN if ranks > 1 else None)
    start = [*launcher, str(ranks)] if launcher else []
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, *start, str(SCRIPT), str(folder), *words],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(next(line for line in reversed(result.stdout.splitlines()) if line.startswith('{"leak')))


def assert_ranks_agree(folder: Path) -> None:
    for file in ("model", "method"):  # weights, bases, moments' factors
        first, second = (read_tensors(folder / f"{file}{rank}.safetensors")[0] for rank in (0, 1))
        assert_equal(second, first)


def assert_close(found: Path, expected: Path) -> None:
    """The changes of two runs differ by rounding, divided by the gaps of the eigenvalues that S and A come from.

    Not their factors: A of the second task is any basis of eigenvectors, whose signs rounding decides.
    """
    one, other = (changes(folder / "protected") for folder in (expected, found))
    assert one.keys() == other.keys()
    for name, change in one.items():
        assert 0 < (other[name] - change).norm() <= 1e-2 * change.norm(), name


def changes(folder: Path) -> dict[str, torch.Tensor]:
    """What both tasks changed of each weight."""
    tensors = read_tensors(folder / "versions/v2/delta.safetensors")[0]
    return {name: delta.dense() for name, delta in unpack_deltas(tensors).items()}


@pytest.mark.parametrize(("kind", "adapter"), [("trainer", "none"), ("completion", "own")])
def test_two_ranks_train_what_one_does(kind, adapter, tmp_path):
    launch(tmp_path / "one", kind, adapter, ranks=1)
    said = launch(tmp_path / "two", kind, adapter, ranks=2)
    assert said["leak"] <= 1e-6
    assert_ranks_agree(tmp_path / "two")
    assert_close(tmp_path / "two", tmp_path / "one")


def test_accelerate_launch(tmp_path):
    """On CPUs it starts several processes only by MPI, so this is one: the same bits as without a launcher."""
    launch(tmp_path / "plain", "trainer", "none", ranks=1)
    launch(tmp_path / "accelerate", "trainer", "none", ranks=1, launcher=ACCELERATE)
    for number in ("v1", "v2"):
        found, expected = (version(tmp_path / name / "protected", number) for name in ("accelerate", "plain"))
        assert_equal(found, expected)


def test_two_ranks_resume(tmp_path):
    launch(tmp_path / "whole", "messages", "own", ranks=2)
    launch(tmp_path / "stopped", "messages", "own", "--stop-at", "2", ranks=2)
    assert not (tmp_path / "stopped/protected/versions/v2").exists()
    launch(tmp_path / "stopped", "messages", "own", "--resume", ranks=2)
    assert_ranks_agree(tmp_path / "stopped")
    assert_equal(version(tmp_path / "stopped/protected", "v2"), version(tmp_path / "whole/protected", "v2"))
