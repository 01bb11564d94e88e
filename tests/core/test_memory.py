"""The memory protects inputs, keeps its precision and its budget, and rejects weights of another shape."""

import pytest
import torch

from gorp.core.memory import SubspaceMemory
from gorp.errors import ModelError
from gorp.storage import read_tensors, write_tensors
from tests.matrices import orthonormality_error


@pytest.fixture
def old_inputs():
    return torch.randn(40, 2) @ torch.randn(2, 6)  # 40 inputs that span two directions of R⁶


def test_a_projected_change_does_not_change_old_outputs(old_inputs):
    memory = SubspaceMemory(energy=0.999)
    assert memory.extend("w", old_inputs) == 2
    change = memory.project_rows("w", torch.randn(4, 6))
    torch.testing.assert_close(change @ old_inputs.mT, torch.zeros(4, 40), rtol=0, atol=1e-5)
    assert change.norm() > 0.1  # a change is still possible


def test_an_unknown_weight_is_not_constrained():
    x = torch.randn(3, 6)
    assert torch.equal(SubspaceMemory(energy=0.9).project_rows("w", x), x)


def test_bases_stay_float32_beside_a_bfloat16_model():
    memory = SubspaceMemory(energy=0.9)
    memory.extend("w", torch.randn(5, 8).bfloat16())
    assert memory.state_dict()["w"].dtype == torch.float32
    assert memory.project_rows("w", torch.randn(3, 8).bfloat16()).dtype == torch.bfloat16


def test_bases_of_a_float64_model_are_float64():
    memory = SubspaceMemory(energy=0.9)
    memory.extend("w", torch.randn(5, 8).double())
    assert orthonormality_error(memory.basis("w", torch.zeros(1, 8).double())) < 1e-14


def test_the_budget_is_never_exceeded():
    memory = SubspaceMemory(energy=0.99, budget=0.5)
    for _ in range(6):
        memory.extend("w", torch.randn(3, 10))
        assert memory.capacity("w") <= 0.5
        assert len(memory.energies("w")) == memory.basis("w", torch.zeros(10)).shape[1]
    assert memory.capacity("w") == 0.5


def test_at_the_budget_the_weakest_directions_are_removed_whatever_their_age():
    """Each task adds one direction of energy 1. e₁ comes twice, so e₂ and e₃ are the weakest; the older one stays."""
    memory, unit = SubspaceMemory(energy=0.5, budget=0.5), torch.eye(4)
    for axis in (0, 1, 0, 2):
        memory.extend("w", unit[axis : axis + 1])
    kept = memory.basis("w", torch.zeros(4)).abs()
    assert torch.equal(kept, unit[:, :2])
    assert memory.energies("w").tolist() == [2.0, 1.0]


def test_energies_of_removed_directions_are_recorded():
    """Energies .75 and .25, then a direction of 1: the weak old one is removed. Then 1/2 and 1/2: one of them fits."""
    memory, unit = SubspaceMemory(energy=0.999, budget=0.5), torch.eye(4)
    memory.extend("w", torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0]).sqrt()))
    memory.begin_task()
    memory.extend("w", unit[2:3])
    assert {name: x.tolist() for name, x in memory.released.items()} == {"w": [pytest.approx(0.25)]}
    assert memory.left_out == {}
    memory.begin_task()
    assert memory.released == {}
    memory.extend("w", unit[3:] + 1.001 * unit[2:3])  # along e₃, already in S, and e₄
    memory.extend("w", unit[3:] * 0.5 + 2 * unit[:1])
    assert torch.equal(memory.basis("w", torch.zeros(4)).abs(), unit[:, [0, 2]])
    assert memory.released == {} and [round(x, 3) for x in memory.left_out["w"].tolist()] == [0.5, 0.059]


def test_a_lower_budget_takes_effect_when_a_task_begins():
    memory, smaller = SubspaceMemory(energy=0.999), SubspaceMemory(energy=0.999, budget=0.5)
    memory.extend("w", torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]).sqrt()))
    assert memory.is_full("w") and memory.size("w") == memory.dimension("w") == 4
    smaller.load_state_dict(memory.state_dict())
    assert not smaller.is_full("w") and smaller.size("w") == 4
    smaller.begin_task()
    assert smaller.size("w") == smaller.cap("w") == 2
    assert smaller.energies("w").tolist() == pytest.approx([0.4, 0.3])
    assert smaller.released["w"].tolist() == pytest.approx([0.2, 0.1])


def test_energies_are_fractions_of_each_task():
    memory = SubspaceMemory(energy=0.99)
    memory.extend("w", torch.diag(torch.tensor([3.0, 1.0, 0.0])) * 1e5)
    assert memory.energies("w").tolist() == pytest.approx([0.9, 0.1])
    memory.extend("w", torch.tensor([[1e-3, 0.0, 1e-3]]))
    assert memory.energies("w").tolist() == pytest.approx([1.4, 0.1, 0.5])


def test_a_task_without_gradients_adds_no_direction():
    memory = SubspaceMemory(energy=0.9)
    assert memory.extend("w", torch.zeros(3, 8)) == 0
    assert memory.extend("w", torch.zeros(0, 8)) == 0
    assert memory.capacity("w") == 0.0
    assert list(memory) == ["w"]


def test_a_memory_read_from_a_file_continues_bit_for_bit(tmp_path):
    memory, other = SubspaceMemory(energy=0.9), SubspaceMemory(energy=0.9)
    memory.extend("a.weight", torch.randn(5, 8))
    memory.extend("b.weight", torch.zeros(5, 8))
    write_tensors(tmp_path / "memory.safetensors", memory.state_dict(), {})
    other.load_state_dict(read_tensors(tmp_path / "memory.safetensors")[0])
    assert list(other) == list(memory)
    for name, value in memory.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    rows = torch.randn(5, 8)
    memory.extend("a.weight", rows)
    other.extend("a.weight", rows)
    assert torch.equal(memory.state_dict()["a.weight"], other.state_dict()["a.weight"])


def test_raises_for_a_weight_with_another_number_of_inputs():
    memory = SubspaceMemory(energy=0.9)
    memory.extend("layers.0.q_proj.weight", torch.randn(3, 8))
    message = r"layers\.0\.q_proj\.weight: the memory holds directions of R\^8, but this weight has 9 inputs"
    with pytest.raises(ModelError, match=message):
        memory.extend("layers.0.q_proj.weight", torch.randn(3, 9))
    with pytest.raises(ModelError, match=message):
        memory.basis("layers.0.q_proj.weight", torch.zeros(4, 9))


@pytest.mark.parametrize("settings", [{"energy": 1.0}, {"energy": 0.9, "budget": 0.0}, {"energy": 0.9, "budget": 1.1}])
def test_raises_if_energy_or_budget_is_not_a_fraction(settings):
    with pytest.raises(ValueError, match="must be a fraction"):
        SubspaceMemory(**settings)
