"""Every test runs offline, on one thread, with the same random numbers.

What the machine lacks for a test is the reason that the test is skipped with.
"""

import atexit
import os
import shutil
import tempfile


# Before anything imports the libraries that read these.
CACHE = tempfile.mkdtemp(prefix="gorp-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ |= {
    "HF_HOME": CACHE,
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "MPLBACKEND": "Agg",
}

import random  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402


torch.set_num_threads(1)
settings.register_profile("gorp", deadline=None, derandomize=True)
settings.load_profile("gorp")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("browser") and shutil.which("chromium") is None:
        pytest.skip("needs Chromium on the PATH")


@pytest.fixture(autouse=True)
def deterministic() -> None:
    """The same random numbers for every test, in whatever order they run, and only operations that repeat exactly."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the public datasets, from the environment variable GORP_DATA."""
    folder = os.environ.get("GORP_DATA")
    if not folder:
        pytest.skip("needs the public datasets: set GORP_DATA to their folder")
    return Path(folder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has learned two tasks: `run.yaml`, and the workspace `run` at v2. Tests do not change it."""
    from gorp.workspace import load_config, run_sequence
    from tests.workspace.project import make_project

    folder = tmp_path_factory.mktemp("finished")
    run_sequence(load_config(make_project(folder)), folder / "run")
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished project, for a test that changes it."""
    return Path(shutil.copytree(finished, tmp_path / "p"))
