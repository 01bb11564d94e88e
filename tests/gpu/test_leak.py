"""The promise of strict mode where products run on a GPU: a later task's change does not act on what S holds."""

import pytest
import torch

from gorp.layers.lora import LoraSettings
from gorp.weights.delta import leak, pack_deltas, unpack_deltas
from tests.matrices import orthonormality_error
from tests.runs import fresh, through_a_file, tiny, train


pytestmark = pytest.mark.gpu
PRECISIONS = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    "bfloat16, autocast": (torch.bfloat16, {"bf16": True}),
}


@pytest.mark.parametrize(
    ("family", "precision", "targets"),
    [
        ("t5", "float32", ("all-linear", "all-linear")),
        ("t5", "bfloat16, autocast", ("all-linear", "all-linear")),
        ("t5", "float32", ("all-linear", "none")),
        ("llama", "float32", ("all-linear", "all-linear")),
        ("llama", "bfloat16", ("all-linear", "all-linear")),
        ("llama", "bfloat16, autocast", ("none", "all-linear")),
    ],
)
def test_strict_mode_leaves_what_s_holds_alone(family, precision, targets, device, tmp_path):
    dtype, training = PRECISIONS[precision]
    model, (lora, full) = tiny(family, dtype=dtype).to(device), targets
    method = fresh("gorp", model, lora=LoraSettings(target_modules=lora), full_modules=full)
    train(model, method, 1, tmp_path, num_train_epochs=4, **training)
    protected = through_a_file(method.memory_tensors(), tmp_path / "memory")
    before = unpack_deltas(through_a_file(pack_deltas(method.deltas), tmp_path / "delta"))
    train(model, method, 2, tmp_path, num_train_epochs=4, **training)
    assert next(model.parameters()).device.type == device.type
    found = {}
    for name, basis in protected.items():
        assert basis.shape[1] > 0 and orthonormality_error(basis) < 1e-5
        change = method.deltas[name].since(before[name])
        if change.norm() > 0:
            found[name] = leak(change, basis)
    assert len(found) >= 0.75 * len(protected)
    assert max(found.values()) <= 1e-5
    assert method.facts()["leak"] <= 1e-5
