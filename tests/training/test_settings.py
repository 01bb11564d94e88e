"""What cannot work in `training:` is refused before anything expensive, and the steps that are announced are taken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

from gorp.errors import ConfigError
from gorp.training import check_arguments, training_arguments
from gorp.training.preflight import num_steps
from gorp.training.settings import SET_BY_GORP, check_training_block
from gorp.workspace import load_config, plan, run_sequence
from tests.runs import fresh, rows, tiny, train
from tests.workspace.project import make_project


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"num_train_epochs": 0}, "num_train_epochs is 0; it must be a finite number, above 0"),
        ({"num_train_epochs": 1e300}, "num_train_epochs"),
        ({"max_steps": 0}, "max_steps is 0; it must be at least 1, or -1"),
        ({"max_steps": -5}, "max_steps is -5"),
        ({"max_steps": True}, "max_steps is True"),
        ({"per_device_train_batch_size": 10**12}, "per_device_train_batch_size is 1000000000000; .* at most 100000"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"weight_decay": NAN}, "weight_decay is nan"),
        ({"max_grad_norm": NAN}, "max_grad_norm is nan"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1"),
        ({"adam_beta1": 2.0}, "adam_beta1 is 2.0; it must be a finite number, at least 0 and below 1"),
        ({"adam_epsilon": NAN}, "adam_epsilon is nan"),
        ({"adam_epsilon": 0.0}, "adam_epsilon is 0.0; .* above 0"),
        ({"label_smoothing_factor": 7}, "label_smoothing_factor is 7"),
        ({"neftune_noise_alpha": -1.0}, "neftune_noise_alpha"),
        ({"save_steps": 0}, "save_steps is 0"),
        ({"save_steps": -1}, "save_steps is -1"),
        ({"save_total_limit": 0}, "save_total_limit is 0; .* at least 2.* null keeps all"),
        ({"save_total_limit": 1}, "save_total_limit is 1"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers is -1"),
        ({"lr_scheduler_kwargs": {"min_lr": INF}}, r"lr_scheduler_kwargs\.min_lr is inf"),
        ({1: 2}, "the key 1 is not text"),
        ({None: 2}, "the key None is not text"),
        ({"eval_on_start": True}, "eval_on_start is set by gorp itself, or not supported"),
        ({"push_to_hub": True}, "push_to_hub is set by gorp itself, or not supported"),
        ({"use_liger_kernel": True}, "use_liger_kernel is set by gorp itself, or not supported"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size is set by gorp itself, or not supported"),
        ({"accelerator_config": "nonsense.json"}, "accelerator_config is set by gorp itself, or not supported"),
    ],
)
def test_is_refused_when_the_yaml_is_read(block, message):
    with pytest.raises(ConfigError, match=message):
        check_training_block(block)


@pytest.mark.parametrize("key", ["hub_token", "push_to_hub_token", "some_token"])
def test_a_token_is_refused_and_not_repeated(key):
    with pytest.raises(ConfigError, match=rf"training\.{key}: a secret") as error:
        check_training_block({key: "hf_SECRET"})
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"report_to": "bogus"}, r"training\.report_to: bogus cannot be used"),
        ({"report_to": ["clearml"]}, r"training\.report_to: clearml cannot be used"),
        ({"optim": "lion_8bit"}, r"training\.optim: `lion_8bit` cannot"),
        ({"optim": "galore_adamw"}, r"training\.optim: `galore_adamw` cannot"),
        ({"optim": "bogus"}, "Hugging Face refuses"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"bogus": 1}}, "lr_scheduler_kwargs .*bogus"),
        ({"lr_scheduler_kwargs": {"bogus": 1}}, "lr_scheduler_kwargs: the schedule `constant` takes none"),
        ({"warmup_steps": 5}, "warmup_steps: the schedule `constant` has no warmup"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "requires an eval strategy"),
        ({"save_strategy": "best"}, "save_strategy is `best`"),
        ({"save_strategy": "bogus"}, "Hugging Face refuses"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 64}, "every batch would be dropped"),
    ],
)
def test_is_refused_when_it_is_made(block, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        check_arguments(training_arguments(block, folder=tmp_path, seed=0, encoder_decoder=False), [28])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="about machines without a GPU")
def test_fp16_needs_a_gpu(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.fp16 is on, but a CPU trains only"):
        training_arguments({"fp16": True}, folder=tmp_path, seed=0, encoder_decoder=False)


def test_several_gpus_without_torchrun_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ConfigError, match=r"2 GPUs are visible.*CUDA_VISIBLE_DEVICES=0"):
        training_arguments({}, folder=tmp_path, seed=0, encoder_decoder=False)


@pytest.mark.parametrize("block", [{}, {"lr_scheduler_type": "cosine", "warmup_steps": 2}, {"report_to": "none"}])
def test_what_can_be_made_is_the_optimizer_that_trains(block, tmp_path):
    arguments = training_arguments(block, folder=tmp_path, seed=0, encoder_decoder=False)
    cls, options = check_arguments(arguments, [28, 5])
    assert issubclass(cls, torch.optim.AdamW) and options["lr"] == 1e-3 and options["weight_decay"] == 0.0


def test_every_refused_key_is_one_of_hugging_face():
    known = {name for name in TrainingArguments.__dataclass_fields__}
    assert set(SET_BY_GORP) <= known | {"parallelism_config", "enable_jit_checkpoint", "hub_revision"}


@given(
    count=st.integers(1, 60),
    size=st.integers(1, 9),
    accumulation=st.integers(1, 5),
    epochs=st.sampled_from([0.1, 0.5, 1, 1.5, 2, 3.3]),
    max_steps=st.sampled_from([-1, 1, 5, 40]),
    drop_last=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_the_steps_that_are_announced_are_those_that_the_trainer_takes(
    count, size, accumulation, epochs, max_steps, drop_last
):
    block = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": epochs,
        "max_steps": max_steps,
        "dataloader_drop_last": drop_last,
    }
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none", **block)
    if drop_last and count < size:
        with pytest.raises(ConfigError, match="dataloader_drop_last"):
            num_steps(count, arguments)
        return
    trainer = object.__new__(Trainer)
    trainer._train_batch_size = size
    trainer.args = arguments
    trainer.get_total_train_batch_size = lambda args: size * accumulation
    trainer.get_sp_size = lambda: 1
    loader = DataLoader(TensorDataset(torch.zeros(count)), batch_size=size, drop_last=drop_last)
    assert num_steps(count, arguments) == trainer.set_initial_training_values(arguments, loader)[-1]


def test_drop_last_is_announced_and_taken(tmp_path):
    model, said = tiny("llama"), []
    result = train(
        model,
        fresh("incremental_lora", model),
        1,
        tmp_path,
        data=rows(1, 14),
        say=said.append,
        dataloader_drop_last=True,
        num_train_epochs=1,
        gradient_accumulation_steps=1,
    )
    assert result.steps == 3 and "task task1 starts from the beginning: 3 steps" in said


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_label_smoothing_weighs_the_same_however_a_batch_is_cut(family, tmp_path):
    ends = []
    for size, accumulation in ((8, 1), (2, 4)):
        model = tiny(family)
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        method = fresh("incremental_lora", model)
        train(model, method, 1, tmp_path, data=rows(1, 16), **cut, num_train_epochs=1, label_smoothing_factor=0.1)
        ends.append(torch.cat([delta.dense().flatten() for delta in method.deltas.values()]))
    assert ends[0].norm() > 0
    assert (ends[0] - ends[1]).norm() <= 1e-3 * ends[0].norm()


@pytest.mark.parametrize("block", [{"report_to": "bogus"}, {"dataloader_drop_last": True}])
def test_nothing_is_written_and_a_dry_run_says_it_too(block, tmp_path):
    config = load_config(make_project(tmp_path, training={"per_device_train_batch_size": 64} | block))
    workspace = tmp_path / "run"
    for command in (plan, run_sequence):
        with pytest.raises(ConfigError, match=f"training.{next(iter(block))}"):
            command(config, workspace)
    assert not workspace.exists()
