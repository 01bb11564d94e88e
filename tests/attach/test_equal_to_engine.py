"""A stock Trainer with Protection trains what gorp's own engine trains, bit for bit."""

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from gorp import GorpConfig, LoraSettings, Protection
from gorp.data import Collator, Encoding, encode
from gorp.methods import build_method
from gorp.training import train_task
from gorp.workspace.state import read_state, write_state
from tests.runs import rows, tiny, tokenizer


TRAINING = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "learning_rate": 5e-3,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,  # every step is clipped, after the projection
    "save_strategy": "no",
    "lr_scheduler_type": "linear",
    "warmup_steps": 2,
}
NO_DIGEST = "0" * 64


def of_engine(family, dtype, training, folder, **options):
    """Return the deltas after two tasks; the method of the second is loaded from the files of the first."""
    model, deltas = tiny(family, dtype=dtype), {}
    for index in (1, 2):
        method = build_method("gorp", GorpConfig(**options), LoraSettings())
        model = tiny(family, dtype=dtype)
        method.setup(model)
        if index == 2:
            method.load_state_dict(read_state(folder / "1", NO_DIGEST))
        train_task(
            model, tokenizer(family), method, rows(index), name=f"task-{index}", index=index, seed=0, training=training,
            encoding=Encoding(), folder=folder / f"run{index}",
        )  # fmt: skip
        write_state(folder / str(index), method, NO_DIGEST)
        deltas = method.deltas
    return deltas


def of_trainer(family, dtype, training, folder, **options):
    """Return the deltas after two tasks, each with a new model, Trainer and Protection."""
    seq2seq, tok = family == "t5", tokenizer(family)
    trainer_class, arguments = (Seq2SeqTrainer, Seq2SeqTrainingArguments) if seq2seq else (Trainer, TrainingArguments)
    for index in (1, 2):
        protection = Protection(folder / "protected", **options)
        args = arguments(
            output_dir=str(folder / f"out{index}"), seed=index, data_seed=index, use_cpu=True, report_to="none",
            disable_tqdm=True, **training,
        )  # fmt: skip
        trainer = trainer_class(
            tiny(family, dtype=dtype),
            args,
            train_dataset=encode(rows(index), tok, encoder_decoder=seq2seq, encoding=Encoding()),
            data_collator=Collator(pad_token_id=tok.pad_token_id),
            callbacks=[protection],
        )
        trainer.train()
        protection.save()
    return protection.method.deltas


@pytest.mark.parametrize(
    ("family", "dtype", "accumulation", "options"),
    [
        ("llama", torch.float32, 2, {}),
        ("t5", torch.float32, 1, {}),  # with accumulation the stock Trainer weighs T5's micro-batches otherwise
        ("llama", torch.bfloat16, 1, {"full_modules": "all-linear"}),
    ],
)
def test_two_tasks_have_the_same_deltas_as_in_the_engine(family, dtype, accumulation, options, tmp_path):
    training = TRAINING | {"gradient_accumulation_steps": accumulation}
    expected = of_engine(family, dtype, training, tmp_path / "engine", **options)
    found = of_trainer(family, dtype, training, tmp_path / "trainer", **options)
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        assert delta.norm() > 0
        torch.testing.assert_close(
            found[name].dense(), delta.dense(), rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
