"""On a GPU too a run that was cut off and resumed is the run that was not, bit for bit."""

import pytest
import torch

from gorp.layers.lora import LoraSettings
from gorp.methods import METHODS
from tests.runs import Kill, Killed, assert_equal, fresh, through_a_file, tiny, train


pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def repeatable(deterministic):
    """Kernels whose sums come in one order: by themselves two unbroken runs differ on a GPU."""
    torch.use_deterministic_algorithms(True)


def build(name: str, family: str, dtype: torch.dtype, device: torch.device):
    model = tiny(family, dropout=0.1, dtype=dtype).to(device)
    lora = LoraSettings(r=4, lora_dropout=0.1) if METHODS[name].uses_lora else None
    return model, fresh(name, model, lora=lora)


@pytest.mark.parametrize(
    ("name", "family", "dtype", "steps"),
    [
        ("gorp", "llama", torch.float32, 4),  # after a second refresh
        ("gorp", "llama", torch.float32, 8),  # nothing left but the end
        ("gorp", "llama", torch.bfloat16, 5),
        ("gorp", "t5", torch.float32, 4),
        ("protected_full", "llama", torch.bfloat16, 3),
        ("sequential_lora", "llama", torch.float32, 4),
        ("ewc", "llama", torch.float32, 4),
        ("olora", "llama", torch.bfloat16, 6),
    ],
)
def test_resumes_to_the_same_bits(name, family, dtype, steps, device, tmp_path):
    model, method = build(name, family, dtype, device)
    train(model, method, 1, tmp_path / "unbroken")
    between = through_a_file(method.state_dict(), tmp_path / "method.safetensors")
    train(model, method, 2, tmp_path / "unbroken")
    weights, state = dict(model.state_dict()), method.state_dict()
    for cut in (Kill(steps), None):
        model, method = build(name, family, dtype, device)
        method.load_state_dict(between)
        where = {"save_strategy": "steps", "save_steps": 1}
        if cut is not None:
            with pytest.raises(Killed):
                train(model, method, 2, tmp_path / "broken", callbacks=(cut,), **where)
        else:
            assert train(model, method, 2, tmp_path / "broken", **where).resumed_at == steps
    assert_equal(model.state_dict(), weights)
    assert_equal(method.state_dict(), state)
