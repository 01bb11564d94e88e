"""Settings of a user's Trainer: each trains two tasks, and the second changes nothing on protected inputs."""

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import EarlyStoppingCallback

from gorp import Protection
from gorp.data import Encoding, encode
from tests.attach.runs import learn, lora_config, make, options_of
from tests.runs import rows, tiny, tokenizer


slow = pytest.mark.slow
CHECKPOINTING = {"gradient_checkpointing": True}
SETTINGS = {
    "accumulation with a shorter last one": ("trainer", "none", {"gradient_accumulation_steps": 3}),
    "checkpointing, reentrant": (
        "trainer", "none", CHECKPOINTING | {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ),
    "checkpointing, not reentrant": (
        "trainer", "own", CHECKPOINTING | {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ),
    "checkpointing, reentrant, own": (
        "messages", "own", CHECKPOINTING | {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ),
    "bf16 autocast": ("messages", "own", {"bf16": True}),
    "max_steps": ("packing", "none", {"max_steps": 5}),
    "neftune": ("completion", "none", {"neftune_noise_alpha": 5.0}),
    "sgd": ("trainer", "none", {"optim": "sgd", "optim_args": "momentum=0.9"}),
    "adafactor": ("trainer", "own", {"optim": "adafactor"}),
    "group by length": ("trainer", "none", {"train_sampling_strategy": "group_by_length"}),
    "label smoothing": ("trainer", "none", {"label_smoothing_factor": 0.1}),
    "epochs saved and limited": (
        "messages", "own", {"num_train_epochs": 2, "save_strategy": "epoch", "save_total_limit": 1},
    ),
    "cosine with warmup": ("trainer", "none", {"lr_scheduler_type": "cosine", "warmup_steps": 2}),
    "eval on start": (
        "completion",
        "none",
        {"eval_on_start": True, "eval_strategy": "epoch", "settings": {"eval_dataset": rows(1, 4)}},
    ),
}  # fmt: skip
FAST = ("accumulation with a shorter last one", "checkpointing, reentrant")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FAST else slow) for name in SETTINGS])
def test_two_tasks(name, tmp_path):
    kind, adapter, arguments = SETTINGS[name]
    own = lora_config(kind) if adapter == "own" else None
    for task in (1, 2):
        _, protection = learn(
            kind, task, tmp_path / "protected", tmp_path / f"out{task}", adapter=own, options={"moments": "keep"} if
            arguments.get("optim") in ("sgd", "adafactor") else {}, **arguments,
        )  # fmt: skip
    assert 0 < protection.facts()["leak"] <= 1e-6
    assert all(delta.norm() > 0 for delta in protection.method.deltas.values())


@slow
def test_checkpointing_computes_the_same_step(tmp_path):
    """The two kinds compute the same forward pass again."""
    found = []
    for number, arguments in enumerate([{}, SETTINGS["checkpointing, reentrant"][2]]):
        _, protection = learn("trainer", 1, tmp_path / f"p{number}", tmp_path / f"o{number}", **arguments)
        found.append(protection.method.deltas)
    for name, delta in found[0].items():
        torch.testing.assert_close(found[1][name].dense(), delta.dense(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own", [False, pytest.param(True, marks=slow)])
def test_a_bfloat16_model(own, tmp_path):
    """The trained change keeps the promise; rounding of the served weights is reported by itself."""
    for task in (1, 2):
        protection = Protection(tmp_path / "protected", **options_of("trainer", lora_config() if own else None))
        model = tiny("llama", dtype=torch.bfloat16)
        trainer = make(
            "trainer", task, tmp_path / f"out{task}", model=model, adapter=lora_config() if own else None,
            callbacks=[protection],
        )  # fmt: skip
        trainer.train()
        protection.save()
    assert 0 < protection.facts()["leak"] <= 1e-5
    assert {p.dtype for p in tiny("llama", dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_early_stopping_ends_the_task(tmp_path):
    protection = Protection(tmp_path / "protected", **options_of("completion"))
    trainer = make(
        "completion", 1, tmp_path / "out", callbacks=[protection, EarlyStoppingCallback(1, 1e9)], max_steps=12,
        eval_strategy="steps", eval_steps=1, metric_for_best_model="loss", greater_is_better=False,
        settings={"eval_dataset": rows(1, 4)},
    )  # fmt: skip
    trainer.train()
    assert 0 < trainer.state.global_step < 12
    assert protection.save().record["steps"] == trainer.state.global_step


def test_rows_that_can_only_be_read_in_order(tmp_path):
    """An iterable data set: its first rows are read, and training sees all of them."""
    whole = encode(rows(1), tokenizer("llama"), encoder_decoder=False, encoding=Encoding())
    found = []
    for name, data in {"map": whole, "iterable": whole.to_iterable_dataset()}.items():
        assert isinstance(data, Dataset | IterableDataset)
        protection = Protection(tmp_path / name, **options_of("trainer"))
        make("trainer", 1, tmp_path / f"out-{name}", callbacks=[protection], data=data, max_steps=4).train()
        protection.save()
        found.append(protection.method)
    assert found[0].deltas.keys() == found[1].deltas.keys()
    for name, basis in found[0].memory_tensors().items():  # all rows are read: the same inputs, in another order
        other = found[1].memory_tensors()[name]
        assert abs(basis.shape[1] - other.shape[1]) <= 4


def test_evaluate_is_called_after_each_evaluation_and_at_the_end(tmp_path):
    calls = []

    def evaluate(model):
        assert not model.training
        calls.append(trainer.state.global_step)
        return {"october": len(calls) / 10}

    protection = Protection(tmp_path / "protected", evaluate=evaluate, **options_of("completion"))
    trainer = make(
        "completion", 1, tmp_path / "out", callbacks=[protection], max_steps=4, eval_strategy="steps", eval_steps=2,
        settings={"eval_dataset": rows(1, 4)},
    )  # fmt: skip
    trainer.train()
    assert calls == [2, 4, 4]
    assert protection.save().record["metrics"]["scores"] == {"october": 0.3}
    scores = [entry["cl/score/october"] for entry in trainer.state.log_history if "cl/score/october" in entry]
    assert scores == [0.1, 0.2, 0.3]


@slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize("own", [False, True])
def test_a_compiled_model_trains_what_an_eager_one_does(own, tmp_path):
    found = []
    for backend in (None, "eager"):
        arguments = {"torch_compile": True, "torch_compile_backend": backend} if backend else {}
        for task in (1, 2):
            _, protection = learn(
                "trainer", task, tmp_path / f"p-{backend}", tmp_path / f"o-{backend}{task}",
                adapter=lora_config() if own else None, **arguments,
            )  # fmt: skip
        assert 0 < protection.facts()["leak"] <= 1e-6
        found.append(protection.method.deltas)
    for name, delta in found[0].items():
        assert (found[1][name].dense() - delta.dense()).norm() <= 1e-2 * delta.norm(), name


def test_a_plain_loop_trains_what_a_trainer_does(tmp_path):
    """The five calls, in a loop of the user's."""
    from torch.utils.data import DataLoader

    from gorp.data import Collator

    tok = tokenizer("llama")
    for task in (1, 2):
        protection, model = Protection(tmp_path / "protected", **options_of("trainer")), tiny("llama")
        loader = DataLoader(
            encode(rows(task), tok, encoder_decoder=False, encoding=Encoding()), batch_size=4,
            collate_fn=Collator(pad_token_id=tok.pad_token_id),
        )  # fmt: skip
        protection.begin(model, rows=loader, num_steps=len(loader))
        optimizer = torch.optim.AdamW(protection.parameters(5e-3))
        model.train()
        for batch in loader:
            model(**batch).loss.backward()
            protection.before_step(optimizer)
            optimizer.step()
            protection.after_step(optimizer)
            optimizer.zero_grad()
        protection.end(optimizer)
        assert protection.save().name == f"v{task}"
    assert 0 < protection.facts()["leak"] <= 1e-6
