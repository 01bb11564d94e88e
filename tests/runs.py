"""Whole runs in a second: a tiny model, tasks that can be learned, and training that may be cut off anywhere."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from gorp.data import Encoding
from gorp.layers.lora import LoraSettings
from gorp.methods import METHODS, build_method
from gorp.methods.base import Method
from gorp.storage import read_tensors, write_tensors
from gorp.training import TaskResult, train_task
from tests.methods.per_task import PerTaskLora
from tests.models_small import tiny_llama, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


KNOWN: dict[str, type[Method]] = {**METHODS, PerTaskLora.name: PerTaskLora}
"""Every method, and one whose state is no delta."""

TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "learning_rate": 5e-3,
    "weight_decay": 0.1,
    "save_strategy": "no",
}
"""AdamW, with the Trainer's clipping; 28 rows make 3 full steps and a half one an epoch, 8 steps in all."""

WORDS = {1: ("green", "red", "blue"), 2: ("World", "Sports", "Business")}
"""Of each task: the word in the prompt that decides the answer."""

ANSWERS = ("true", "false", "good")


def tiny(family: str, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A fresh model of `family`, the same each time."""
    if family == "t5":
        return tiny_t5(t5_tokenizer(), dropout_rate=dropout).to(dtype)
    # Its head is its embedding, frozen and behind a norm: of the usual size 0.02 no answer could become likely.
    return tiny_llama(llama_tokenizer(), attention_dropout=dropout, initializer_range=0.2).to(dtype)


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The tokenizer of `tiny(family)`."""
    return t5_tokenizer() if family == "t5" else llama_tokenizer()


def rows(task: int, count: int = 28) -> Dataset:
    """Rows of task 1 or 2: one word decides the answer, the rest is chaff of one length."""
    words = WORDS[task]
    return Dataset.from_list(
        [
            {"prompt": f"The light {i % 10} is {words[i % 3]}. Answer:", "completion": ANSWERS[i % 3]}
            for i in range(count)
        ]
    )


def fresh(name: str, model: PreTrainedModel, *, lora: LoraSettings | None = None, **options: Any) -> Method:
    """A method that knows `model`. GORP refreshes every 3 steps, so that a run of 8 sees several frames."""
    if name == "gorp":
        options = {"rank": 4, "refresh_every": 3, "oversampling": 4} | options
    if name == "ewc":
        options = {"fisher_examples": 4} | options
    lora = lora or LoraSettings(target_modules="auto")  # a few layers, so that runs stay short
    config = KNOWN[name].Config(**options)
    method = build_method(name, config, lora) if name in METHODS else KNOWN[name](config, lora)  # type: ignore[call-arg]
    method.setup(model)
    return method


def train(
    model: PreTrainedModel,
    method: Method,
    task: int,
    folder: Path,
    *,
    callbacks: tuple[TrainerCallback, ...] = (),
    data: Dataset | None = None,
    say: Callable[[str], None] = lambda line: None,
    on_ready: Any = None,
    num_tasks: int | None = None,
    **training: Any,
) -> TaskResult:
    """One task through the real `train_task`; `training` wins over `TRAINING`."""
    family = "t5" if model.config.is_encoder_decoder else "llama"
    return train_task(
        model,
        tokenizer(family),
        method,
        data if data is not None else rows(task),
        name=f"task{task}",
        index=task,
        seed=7,
        training=TRAINING | training,
        encoding=Encoding(max_prompt_tokens=64),
        folder=folder,
        num_tasks=num_tasks,
        callbacks=callbacks,
        on_ready=on_ready,
        say=say,
    )


def through_a_file(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """What comes back when `state` has been written and read."""
    write_tensors(path, state, {})
    return read_tensors(path)[0]


class Killed(Exception):
    """The power went."""


class Kill(TrainerCallback):
    """Stops training when `steps` optimizer steps are done: before the next one, or before the last one is saved."""

    def __init__(self, steps: int, *, unsaved: bool = False) -> None:
        self.steps, self.unsaved = steps, unsaved

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            raise Killed

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.unsaved and state.global_step == self.steps:
            raise Killed

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            raise Killed


class Losses(TrainerCallback):
    """Keeps every logged loss; train with `logging_steps=1`."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self.values.append(logs["loss"])


def assert_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names and the same bits."""
    assert actual.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert not different, f"{len(different)} of {len(expected)} differ, for example {different[:4]}"
