"""`Protection` in a stock Trainer on a GPU: the leak with fp16's gradient scaler, and resuming to the same bits."""

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from gorp import Protection
from gorp.data import Collator, Encoding, encode
from tests.runs import rows, tiny, tokenizer


PRECISIONS = [
    pytest.param({}, id="float32", marks=pytest.mark.gpu),  # on the CPU in tests/attach, as is resuming
    pytest.param({"bf16": True}, id="bf16"),
    pytest.param({"fp16": True}, id="fp16", marks=pytest.mark.gpu),  # a CPU has none
]


class StopAfterSave(TrainerCallback):
    """Ends the process's training as Ctrl-C does, after the first checkpoint."""

    def on_save(self, args, state, control, **_):
        raise KeyboardInterrupt


def trainer(protection, index, folder, device, *callbacks, **training):
    tok = tokenizer("llama")
    args = TrainingArguments(
        output_dir=str(folder), seed=index, use_cpu=device.type == "cpu", report_to="none", disable_tqdm=True,
        per_device_train_batch_size=4, num_train_epochs=4, learning_rate=5e-3, max_grad_norm=0.5,
        save_strategy="steps", save_steps=10, full_determinism=False, **training,
    )  # fmt: skip
    return Trainer(
        tiny("llama"),
        args,
        train_dataset=encode(rows(index), tok, encoder_decoder=False, encoding=Encoding()),
        data_collator=Collator(pad_token_id=tok.pad_token_id),
        callbacks=[protection, *callbacks],
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_second_task_leaves_what_the_first_needs_alone(precision, either, tmp_path):
    if "fp16" in precision and either.type == "cpu":
        pytest.skip("fp16 needs a GPU")
    for index in (1, 2):
        protection = Protection(tmp_path / "protected", full_modules="all-linear")
        trainer(protection, index, tmp_path / f"out{index}", either, **precision).train()
        version = protection.save()
    assert 0.0 < version.record["leak"] <= 1e-5
    assert sum(delta.norm() for delta in protection.method.deltas.values()) > 0


@pytest.mark.gpu
def test_a_resumed_training_ends_with_the_same_bits(device, tmp_path):
    torch.use_deterministic_algorithms(True)
    unbroken = Protection(tmp_path / "a")
    trainer(unbroken, 1, tmp_path / "out-a", device).train()
    with pytest.raises(KeyboardInterrupt):
        trainer(Protection(tmp_path / "b"), 1, tmp_path / "out-b", device, StopAfterSave()).train()
    resumed = Protection(tmp_path / "b")
    trainer(resumed, 1, tmp_path / "out-b", device).train(resume_from_checkpoint=True)
    first, second = unbroken.method.state_dict(), resumed.method.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
