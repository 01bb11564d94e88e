"""Training leaves no trace on a model but its weights, and none on the process."""

import pytest
import torch
from transformers import TrainerCallback

from gorp.training.found import SavedModelState, SavedTorchSettings
from tests.runs import Kill, Killed, fresh, tiny, train


def traces(model):
    """All attributes of all modules and of the config but tensors and layers; of hooks, how many."""
    own = {"_parameters", "_buffers", "_modules", "config", "generation_config"}
    modules = {
        f"{name}.{key}": len(value) if isinstance(value, dict) else value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key not in own
    }
    return modules | {f"config.{key}": value for key, value in vars(model.config).items()}


def answers(model):
    ids = torch.arange(5, 45).reshape(4, 10)
    extra = {"decoder_input_ids": ids[:, :3]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **extra).logits


class Scale(TrainerCallback):
    """What hooks on the model are there in training."""

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.seen = traces(model)


@pytest.mark.parametrize(
    ("family", "training"),
    [
        ("llama", {"bf16": True}),
        ("t5", {"bf16": True}),
        ("llama", {"gradient_checkpointing": True, "neftune_noise_alpha": 5.0}),
        ("t5", {"gradient_checkpointing": True, "use_cache": False}),
    ],
)
@pytest.mark.parametrize("killed", [False, True])
def test_the_model_is_as_it_was_but_for_its_weights(family, training, killed, tmp_path):
    model, seen = tiny(family).eval(), Scale()
    before = traces(model)
    callbacks = (seen, Kill(1)) if killed else (seen,)
    try:
        train(model, fresh("gorp", model), 1, tmp_path, num_train_epochs=0.5, callbacks=callbacks, **training)
        assert not killed
    except Killed:
        assert killed
    assert {key for key in before if seen.seen.get(key) != before[key]}  # there was something to put back
    assert traces(model) == before
    loaded = tiny(family).eval()
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(answers(model), answers(loaded))


def test_fisher_information_is_taken_in_the_precision_of_the_model(tmp_path, monkeypatch):
    model = tiny("llama")
    method = fresh("ewc", model)
    autocast = []
    real = type(method).end_task

    def end_task(self, model, optimizer, task):
        model.lm_head.register_forward_hook(lambda *_: autocast.append(torch.is_autocast_enabled("cpu")))
        real(self, model, optimizer, task)

    monkeypatch.setattr(type(method), "end_task", end_task)
    train(model, method, 1, tmp_path, num_train_epochs=0.25, bf16=True)
    assert len(autocast) == 4 and not any(autocast)


def test_hooks_stay_under_the_control_of_their_handles():
    layer = torch.nn.Linear(2, 2)
    handle = layer.register_forward_hook(lambda *_: None)
    found = SavedModelState(layer)
    layer.register_forward_hook(lambda *_: None)
    layer.new = 1
    found.restore()
    assert len(layer._forward_hooks) == 1 and not hasattr(layer, "new")
    handle.remove()
    assert not layer._forward_hooks


def how_torch_computes():
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    return torch.backends.fp32_precision, *deterministic


def test_the_process_computes_as_before():
    before, found = how_torch_computes(), SavedTorchSettings()
    torch.backends.fp32_precision = "tf32"
    torch.backends.cudnn.deterministic = not before[2]
    torch.use_deterministic_algorithms(not before[1])
    found.restore()
    assert how_torch_computes() == before
