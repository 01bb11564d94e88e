"""What cannot be protected is refused by name, before the first step; the folder and the model are as they were."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

from gorp import LoraSettings, Protection
from gorp.data import Encoding, encode
from gorp.errors import CheckpointError, ConfigError, GorpError, ModelError, TrainingError
from tests.attach.runs import learn, lora_config, make, options_of
from tests.attach.trees import assert_same, tree, whole
from tests.models_small import tiny_llama
from tests.runs import rows, tiny, tokenizer


@pytest.fixture(scope="module")
def one_task(tmp_path_factory):
    root = tmp_path_factory.mktemp("one_task")
    learn("trainer", 1, root / "protected", root / "out")
    return root / "protected"


@pytest.fixture
def folder(one_task, tmp_path):
    return shutil.copytree(one_task, tmp_path / "protected")


def refused(
    folder: Any,
    model: nn.Module,
    train: Callable[[Protection], Any],
    error: type[Exception],
    match: str,
    **options: Any,
) -> None:
    """Assert that `train` raises, and leaves the folder and the model alone."""
    files, before, training = tree(folder), whole(model), model.training
    protection = Protection(folder, **options_of("trainer", None, **options))
    with pytest.raises(error, match=match):
        train(protection)
    assert tree(folder) == files
    assert_same(model, before)
    with pytest.raises(TrainingError, match="has not finished"):
        protection.save()
    model.train(training)


EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}
ARGUMENTS = {
    "load_best_model_at_end": EVALUATED | {"save_strategy": "steps", "save_steps": 2},
    "auto_find_batch_size": {},
    "restore_callback_states_from_checkpoint": {},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name, folder, tmp_path):
    model = tiny("llama")
    refused(
        folder, model,
        lambda p: make("completion", 2, tmp_path / "out", model=model, callbacks=[p],
                       settings={"eval_dataset": rows(2)}, **{name: True}, **ARGUMENTS[name]),
        ConfigError, f"{name} is on: ",
    )  # fmt: skip


def test_save_strategy_best(folder, tmp_path):
    model = tiny("llama")
    refused(
        folder, model,
        lambda p: make("completion", 2, tmp_path / "out", model=model, callbacks=[p],
                       settings={"eval_dataset": rows(2)}, **EVALUATED | {"save_strategy": "best"}),
        ConfigError, "save_strategy is `best`",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "DeepSpeed gives the optimizer flattened"),
        ({"fsdp": True}, "FSDP gives the optimizer flattened"),
        ({"_n_gpu": 2}, "2 GPUs are visible.*nn.DataParallel.*CUDA_VISIBLE_DEVICES=0"),
    ],
)
def test_other_kinds_of_parallelism(change, match, folder, tmp_path):
    """This machine has none of them, so the arguments are changed after their own checks."""
    model, args = tiny("llama"), TrainingArguments(str(tmp_path / "out"), use_cpu=True)
    args.__dict__.update(change)
    refused(folder, model, lambda p: p.begin_on(args, model), ConfigError, match)


@pytest.mark.parametrize(
    "optim", ["galore_adamw", "galore_adamw_layerwise", "apollo_adamw", "lomo", "adalomo", "grokadamw"]
)
def test_optimizers_that_choose_their_parameters_or_are_not_there(optim, folder, tmp_path):
    model = tiny("llama")
    extra = {"optim_target_modules": ["mlp"]} if "galore" in optim or "apollo" in optim else {}
    refused(
        folder, model,
        lambda p: make("trainer", 2, tmp_path / "out", model=model, callbacks=[p], optim=optim, **extra),
        ConfigError, f"optim: `{optim}` ",
    )  # fmt: skip


def test_an_optimizer_made_before(folder, tmp_path):
    model = tiny("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    refused(
        folder, model,
        lambda p: make("trainer", 2, tmp_path / "out", model=model, callbacks=[p],
                       settings={"optimizers": (optimizer, None)}).train(),
        ConfigError, "it was made before Protection.*Do not pass `optimizers=`",
    )  # fmt: skip


def test_model_init(folder, tmp_path):
    model = tiny("llama")
    made = [model]

    def init() -> nn.Module:
        made.append(tiny("llama"))
        return made[-1]

    def train(protection: Protection) -> None:
        trainer = Trainer(
            args=TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none"), model_init=init,
            train_dataset=encode(rows(2), tokenizer("llama"), encoder_decoder=False, encoding=Encoding()),
            callbacks=[protection],
        )  # fmt: skip
        trainer.train()

    refused(folder, model, train, ConfigError, "has replaced its model")
    for other in made:
        assert_same(other, whole(model))


ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "`use_dora` is True"),
    "bias": ({"bias": "lora_only"}, "`bias` is 'lora_only'"),
    "lora_bias": ({"lora_bias": True}, "`lora_bias` is True"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "`modules_to_save` is"),
    "pissa": ({"init_lora_weights": "pissa"}, "`init_lora_weights` is 'pissa'"),
    "olora init": ({"init_lora_weights": "olora"}, "`init_lora_weights` is 'olora'"),
    "random B": ({"init_lora_weights": False}, "`init_lora_weights` is False"),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, "`Embedding` layer on `model.embed_tokens`"),
    "tokens": ({"trainable_token_indices": [1]}, "`trainable_token_indices` is"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT, on tied embeddings
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name, folder, tmp_path):
    changed, match = ADAPTERS[name]
    model = get_peft_model(tiny("llama"), lora_config(**changed))
    refused(
        folder, model,
        lambda p: make("trainer", 2, tmp_path / "out", model=model, callbacks=[p]),
        ConfigError, match, lora=None,
    )  # fmt: skip


def test_two_adapters(folder, tmp_path):
    model = get_peft_model(tiny("llama"), lora_config())
    model.add_adapter("second", lora_config())
    refused(
        folder, model, lambda p: make("trainer", 2, tmp_path / "out", model=model, callbacks=[p]),
        ConfigError, r"has 2 adapters \(default, second\)", lora=None,
    )  # fmt: skip


def test_a_trained_adapter(folder, tmp_path):
    model = get_peft_model(tiny("llama"), lora_config())
    with torch.no_grad():
        model.get_submodule("base_model.model.model.layers.0.self_attn.v_proj").lora_B["default"].weight.fill_(0.1)
    refused(
        folder, model, lambda p: make("trainer", 2, tmp_path / "out", model=model, callbacks=[p]),
        ConfigError, "adapter is trained already", lora=None,
    )  # fmt: skip


def test_an_adapter_and_settings_of_pairs(folder, tmp_path):
    model = get_peft_model(tiny("llama"), lora_config())
    refused(
        folder, model, lambda p: make("trainer", 2, tmp_path / "out", model=model, callbacks=[p]),
        ConfigError, "lora is given, but the model has a LoRA adapter of its own",
    )  # fmt: skip


def test_another_kind_of_adapter(folder, tmp_path):
    from peft import IA3Config

    model = get_peft_model(tiny("llama"), IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    refused(
        folder, model, lambda p: make("trainer", 2, tmp_path / "out", model=model, callbacks=[p]),
        ConfigError, "`peft_type` is 'IA3'", lora=None,
    )  # fmt: skip


def test_rows_without_labels(folder, tmp_path):
    model, tok = tiny("llama"), tokenizer("llama")
    data = Dataset.from_dict({"input_ids": tok([row["prompt"] for row in rows(2)])["input_ids"]})

    def collate(features):
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(f["input_ids"]) for f in features], batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    def train(protection: Protection) -> None:
        trainer = make("trainer", 2, tmp_path / "out", model=model, callbacks=[protection], data=data)
        trainer.data_collator = collate
        trainer.train()

    refused(folder, model, train, ConfigError, r"has no `labels` \(it has input_ids, attention_mask\)")


def test_another_base_model(folder, tmp_path):
    model = tiny_llama(tokenizer("llama"), seed=1)
    refused(
        folder, model, lambda p: make("trainer", 2, tmp_path / "out", model=model, callbacks=[p]),
        CheckpointError, "is not the base model of .*its weights differ",
    )  # fmt: skip


def test_a_merged_model(one_task, folder, tmp_path):
    trainer, _ = learn("trainer", 2, folder, tmp_path / "out1")
    model = tiny("llama")
    model.load_state_dict(trainer.model.state_dict())
    refused(
        folder, model, lambda p: make("trainer", 2, tmp_path / "out", model=model, callbacks=[p]),
        CheckpointError, "If this is a merged model of an earlier task, load the base model instead",
    )  # fmt: skip


def test_another_dtype(folder, tmp_path):
    model = tiny("llama").to(torch.bfloat16)
    refused(
        folder, model, lambda p: make("trainer", 2, tmp_path / "out", model=model, callbacks=[p]),
        CheckpointError, "loaded in bfloat16, and was in float32",
    )  # fmt: skip


def test_layers_that_no_task_has_protected(folder, tmp_path):
    model = tiny("llama")
    refused(
        folder, model, lambda p: make("trainer", 2, tmp_path / "out", model=model, callbacks=[p]),
        ConfigError, "would train 2 layers that the learned tasks did not",
        lora=LoraSettings(r=4, target_modules=("q_proj", "v_proj", "down_proj")),
    )  # fmt: skip


def quantized_linear() -> nn.Module:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    return bitsandbytes.nn.Linear4bit(32, 32, bias=False, compute_dtype=torch.float32).to("cpu")


@pytest.mark.parametrize("own", [False, True])
def test_a_quantized_layer(own, tmp_path):
    model: nn.Module = tiny("llama")
    model.get_submodule("model.layers.0.self_attn").q_proj = quantized_linear()
    if own:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    (tmp_path / "protected").mkdir()
    refused(
        tmp_path / "protected", model, lambda p: make("trainer", 1, tmp_path / "out", model=model, callbacks=[p]),
        GorpError, "q_proj", **({"lora": None} if own else {}),
    )  # fmt: skip


def test_options_that_must_stay(folder):
    with pytest.raises(ConfigError, match=r"mode is 'paper'.*were learned with 'strict'"):
        Protection(folder, mode="paper")
    with pytest.raises(ConfigError, match=r"method is `ewc`.*were learned with `gorp`"):
        Protection(folder, method="ewc")
    with pytest.raises(ConfigError, match=r"`rnak` is not an option.*rank"):
        Protection(folder, rnak=3)


def test_folders_that_are_none(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/todo.txt").write_text("buy milk")
    (tmp_path / "file").write_text("")
    for name in ("notes", "file"):
        before = tree(tmp_path)
        with pytest.raises(GorpError):
            protection = Protection(tmp_path / name, **options_of("trainer"))
            make("trainer", 1, tmp_path / "out", callbacks=[protection])
        assert tree(tmp_path) == before


def test_transformers_own_adapter_is_trained_like_peft_s(tmp_path):
    """`model.add_adapter` leaves PEFT's layers in the model, without a PeftModel around it."""
    found = []
    for name in ("peft", "transformers"):
        torch.manual_seed(0)
        model: Any = tiny("llama")
        if name == "peft":
            model = get_peft_model(model, lora_config())
        else:
            model.add_adapter(lora_config())
        out = tmp_path / f"out-{name}"
        _, protection = learn("trainer", 1, tmp_path / name, out, model=model, options={"lora": None})
        found.append(protection.method.deltas)
    for name, delta in found[0].items():
        torch.testing.assert_close(found[1][name].dense(), delta.dense(), rtol=0, atol=0)
    assert issubclass(ModelError, GorpError)
