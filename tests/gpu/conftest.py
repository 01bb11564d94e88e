"""What holds on the CPU holds on a GPU too: `pytest -m gpu tests/gpu`. What is quick runs on the CPU as well."""

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """Where everything here runs."""
    return torch.device("cuda")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def either(request) -> torch.device:
    """The CPU as well, for what is quick there: so that these tests follow the code where nobody has a GPU."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def deterministic():
    """The same random numbers for every test; operations as users run them, unless a test asks for deterministic ones.

    In place of the fixture of this name for all tests.
    """
    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before)
