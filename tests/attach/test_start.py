"""A first task that was learned without gorp, by PEFT or by full fine-tuning; then a second one with gorp."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from gorp import LoraSettings, Protection
from gorp.attach.start import read_directions
from gorp.data import Collator, Encoding, encode
from gorp.errors import CheckpointError, ConfigError
from gorp.layers.lora import LoraPair
from gorp.storage import read_tensors
from gorp.weights.base import BaseWeights
from gorp.weights.delta import unpack_deltas
from tests.runs import rows, tiny, tokenizer


QV = {"llama": ["q_proj", "v_proj", "down_proj"], "t5": ["q", "v", "wo"]}


def encoded(family, task):
    return encode(rows(task), tokenizer(family), encoder_decoder=family == "t5", encoding=Encoding())


def loader(family, task=1):
    collate = Collator(pad_token_id=tokenizer(family).pad_token_id)
    return DataLoader(encoded(family, task), batch_size=4, collate_fn=collate)


def fit(family, model, task, out, callbacks=(), epochs=2, rate=1e-2):
    """Train with a stock Trainer."""
    seq2seq = family == "t5"
    trainer_class, arguments = (Seq2SeqTrainer, Seq2SeqTrainingArguments) if seq2seq else (Trainer, TrainingArguments)
    args = arguments(
        output_dir=str(out), seed=task, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
        learning_rate=rate, num_train_epochs=epochs, per_device_train_batch_size=4,
    )  # fmt: skip
    collator = Collator(pad_token_id=tokenizer(family).pad_token_id)
    trainer = trainer_class(
        model, args, train_dataset=encoded(family, task), data_collator=collator, callbacks=list(callbacks)
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """The folder of an adapter per family, trained by PEFT and a stock Trainer."""
    made = {}

    def of(family):
        if family not in made:
            folder = made[family] = tmp_path_factory.mktemp(f"adapter-{family}")
            torch.manual_seed(3)
            model = get_peft_model(tiny(family), LoraConfig(r=4, lora_alpha=16, target_modules=QV[family]))
            fit(family, model, 1, folder / "out", epochs=4)
            model.save_pretrained(folder)
        return made[family]

    return of


def merged(family, folder):
    """The weights that PEFT computes by merging."""
    return PeftModel.from_pretrained(tiny(family), folder).merge_and_unload()


def served(version, model):
    """`model` with the changes of a version in its weights."""
    BaseWeights(model).load(unpack_deltas(read_tensors(version.folder / "delta.safetensors")[0]))
    return model


def logits(family, model, task=1):
    """Logits at every label of the task's rows."""
    with torch.no_grad():
        found = [(model(**batch).logits, batch["labels"]) for batch in loader(family, task)]
    if family == "t5":
        return torch.cat([x[y != -100] for x, y in found])
    return torch.cat([x[:, :-1][y[:, 1:] != -100] for x, y in found])


def assert_is_base(model, family):
    """The model has the base weights, and trains what it did before."""
    for (name, p), fresh in zip(model.named_parameters(), tiny(family).parameters(), strict=True):
        assert torch.equal(p, fresh), name
        assert p.requires_grad == fresh.requires_grad


@pytest.mark.parametrize("family", ["llama", pytest.param("t5", marks=pytest.mark.slow)])
def test_a_peft_adapter_becomes_the_first_task_and_is_protected_from_the_second(family, adapters, tmp_path):
    adapter, base = adapters(family), tiny(family)
    version = Protection.from_adapter(tmp_path / "p", base, adapter, task="one", rows=loader(family))
    assert (version.name, version.contains, version.record["protected_from"]) == ("v1", ["one"], "rows")
    assert version.record["earlier"]["one"]["coverage"] > 0.8
    assert_is_base(base, family)
    expected = merged(family, adapter)
    first = served(version, tiny(family))
    for (name, p), other in zip(first.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, other, rtol=0, atol=1e-6, msg=name)

    protection = Protection(tmp_path / "p")
    model = tiny(family)
    fit(family, model, 2, tmp_path / "o", [protection], rate=5e-3)
    second = protection.save()
    assert second.record["leak"] <= 1e-6
    assert second.record["leak_earlier"]["one"]["worst"] <= 1e-6
    assert second.record["earlier"]["one"]["output_change"] > 0

    # The same second task without gorp: the merged model, and LoRA on every linear layer as gorp's default has.
    torch.manual_seed(2)
    plain = get_peft_model(merged(family, adapter), LoraConfig(r=8, lora_alpha=32, target_modules="all-linear"))
    fit(family, plain, 2, tmp_path / "q", rate=5e-3)
    before = logits(family, first)
    kept = (logits(family, served(second, tiny(family))) - before).norm()
    lost = (logits(family, plain) - before).norm()
    assert kept < 0.6 * lost  # 32 inputs a layer, of which 24 may be protected


@pytest.mark.parametrize("method", ["gorp", "protected_full"])
def test_s_is_the_one_of_a_task_that_was_trained_here(method, adapters, tmp_path):
    """The same change, once read from the adapter, once as the pairs of a task that ends after no step."""
    family, adapter = "llama", adapters("llama")
    layers = tuple(QV[family])
    options = {"full_modules": layers} if method == "protected_full" else {"full_modules": "none"}
    if method == "gorp":
        options["lora"] = LoraSettings(r=4, lora_alpha=16.0, target_modules=layers)
    found = Protection.from_adapter(
        tmp_path / "a", tiny(family), adapter, task="task-1", rows=loader(family), method=method, **options
    )
    trained = Protection(tmp_path / "b", task="task-1", method=method, **options)
    model = tiny(family)
    trained.begin(model, rows=loader(family), num_steps=1)
    optimizer = torch.optim.SGD(trained.parameters(0.1))
    with torch.no_grad():
        if method == "gorp":
            for key, value in load_file(adapter / "adapter_model.safetensors").items():
                layer, _, factor = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
                model.get_submodule(f"{layer}.{factor}")["gorp"].weight.copy_(value)
        else:
            for p, other in zip(model.parameters(), merged(family, adapter).parameters(), strict=True):
                p.copy_(other)
    trained.end(optimizer)
    expected = trained.save()
    a, b = (read_tensors(v.folder / "memory.safetensors")[0] for v in (found, expected))
    assert a.keys() == b.keys() and a
    for name, basis in a.items():
        assert basis.shape == b[name].shape and basis.shape[1] > 0
        # The weights differ in the last bit, and so do the spans, most in their weakest directions.
        assert (basis - b[name] @ (b[name].mT @ basis)).norm() < 1e-2, name
    key = "earlier"
    assert found.record[key]["task-1"]["coverage"] == pytest.approx(
        expected.record[key]["task-1"]["coverage"], abs=1e-4
    )
    assert found.record["layers"] == expected.record["layers"]


def test_without_rows_exactly_what_the_adapter_reads_is_protected(adapters, tmp_path, caplog):
    family, adapter = "llama", adapters("llama")
    version = Protection.from_adapter(tmp_path / "p", tiny(family), adapter, task="one")
    assert version.record["protected_from"] == "adapter"
    assert version.record["earlier"] == {}  # no inputs were read, so no coverage
    assert "only the input directions that the adapter reads" in caplog.text
    tensors = load_file(adapter / "adapter_model.safetensors")
    memory, _ = read_tensors(version.folder / "memory.safetensors")
    downs = {k.removeprefix("base_model.model.").replace(".lora_A", ""): v for k, v in tensors.items() if "lora_A" in k}
    assert memory.keys() == downs.keys()
    for name, basis in memory.items():
        torch.testing.assert_close(basis.mT @ basis, torch.eye(4), rtol=0, atol=1e-6)
        torch.testing.assert_close(downs[name] @ basis @ basis.mT, downs[name], rtol=0, atol=1e-5)

    protection = Protection(tmp_path / "p")
    model = tiny(family)
    fit(family, model, 2, tmp_path / "o", [protection])
    second = protection.save()
    assert second.record["leak"] <= 1e-6
    first, now = (served(v, tiny(family)) for v in (version, second))
    for name, down in downs.items():
        old, new = first.get_parameter(name), now.get_parameter(name)
        assert (new - old).norm() > 1e-3
        along, across = down[0], torch.linalg.svd(down).Vh[-1]  # an input that the adapter reads, and one it does not
        assert ((new - old) @ along).norm() <= 1e-5 * (new - old).norm() * along.norm()
        assert ((new - old) @ across).norm() > 1e-4 * (new - old).norm()


def test_directions_of_a_pair_are_ordered_by_what_the_adapter_does_with_them():
    down = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [1.0, 1.0, 0, 0]])  # rank 2
    up = torch.tensor([[1.0, 0, 0], [0, 3.0, 0]])
    basis, energies = read_directions(LoraPair(down=torch.nn.Parameter(down), up=torch.nn.Parameter(up), scale=2.0))
    # B A = [[1, 0, 0, 0], [0, 3, 0, 0]]: the second input direction has 9 / 10 of its squared norm.
    torch.testing.assert_close(energies, torch.tensor([0.9, 0.1]))
    torch.testing.assert_close(basis.abs(), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))


def test_rslora_and_patterns_scale_as_peft_does(tmp_path):
    config = LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "k_proj", "gate_proj"],
        rank_pattern={"k_proj": 2}, alpha_pattern={"layers.1.self_attn.q_proj": 32, "gate_proj": 3},
        init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(0)
    get_peft_model(tiny("llama"), config).save_pretrained(tmp_path / "adapter")
    version = Protection.from_adapter(tmp_path / "p", tiny("llama"), tmp_path / "adapter", task="one")
    found, expected = served(version, tiny("llama")), merged("llama", tmp_path / "adapter")
    for (name, p), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, other, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", ["llama", pytest.param("t5", marks=pytest.mark.slow)])
def test_a_finetuned_model_becomes_the_first_task(family, tmp_path):
    tuned, base = tiny(family), tiny(family)
    fit(family, tuned, 1, tmp_path / "t", rate=3e-3)
    version = Protection.from_finetuned(
        tmp_path / "p", base, tuned, task="one", rows=loader(family), evaluate=lambda m: {"one": float(m is base)}
    )
    assert version.record["protected_from"] == "rows" and version.record["metrics"]["scores"] == {"one": 1.0}
    assert_is_base(base, family)
    first = served(version, tiny(family))
    changed = {name for name, p in base.named_parameters() if not torch.equal(p, tuned.get_parameter(name))}
    assert any("norm" in name for name in changed) and any("embed" in name or "shared" in name for name in changed)
    for name, p in first.named_parameters():
        torch.testing.assert_close(p, tuned.get_parameter(name), rtol=0, atol=1e-6, msg=name)

    protection = Protection(tmp_path / "p")
    model = tiny(family)
    fit(family, model, 2, tmp_path / "o", [protection], rate=5e-3)
    second = protection.save()
    assert second.record["leak"] <= 1e-6 and second.record["leak_earlier"]["one"]["worst"] <= 1e-6
    now = served(second, tiny(family))
    trained = {f"{layer}.weight" for layer in second.record["layers"]}
    for name, p in now.named_parameters():
        if name not in trained:  # norms, embeddings, the head: as the fine-tuning left them
            assert torch.equal(p, first.get_parameter(name)), name
    fit(family, tuned, 2, tmp_path / "u", rate=3e-3)
    before = logits(family, first)
    assert (logits(family, now) - before).norm() < 0.6 * (logits(family, tuned) - before).norm()


def write(folder, tensors=None, **options):
    """An adapter on q_proj of the tiny Llama, with some of its options or tensors replaced."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny("llama"), config).save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    if tensors is not None:
        save_file(load_file(folder / "adapter_model.safetensors") | tensors, folder / "adapter_model.safetensors")
    return folder


def key(layer, part):
    return f"base_model.model.{layer}.{part}"


@pytest.mark.parametrize(
    ("options", "tensors", "says"),
    [
        ({"use_dora": True}, None, "`use_dora` is True"),
        ({"bias": "all"}, None, "`bias` is 'all'"),
        ({"modules_to_save": ["lm_head"]}, None, "`modules_to_save` is"),
        ({"peft_type": "IA3"}, None, "`peft_type` is 'IA3'"),
        ({"init_lora_weights": "pissa"}, None, "`init_lora_weights` is 'pissa'"),
        ({"alora_invocation_tokens": [5]}, None, "`alora_invocation_tokens`"),
        ({"of_a_later_peft": 3}, None, "`of_a_later_peft`"),
        ({"r": 3}, None, "rank r = 3"),
        ({}, {key("model.embed_tokens", "lora_embedding_A"): torch.ones(2, 3)}, "embedding"),
        ({}, {key("model.norm", "weight"): torch.ones(3)}, "no factor of a LoRA pair"),
        ({}, {key("model.layers.9.q_proj", "lora_A.weight"): torch.ones(2, 32)}, "no such layer"),
        ({}, {key("lm_head", "lora_A.weight"): torch.ones(2, 32)}, "`lm_head`, to which nothing can be added"),
        ({}, {key("model.norm", "lora_A.weight"): torch.ones(2, 32)}, "it is a LlamaRMSNorm"),
        ({}, {key("model.layers.0.self_attn.q_proj", "lora_A.weight"): torch.full((2, 32), torch.nan)}, "not finite"),
        ({}, {key("model.layers.0.self_attn.q_proj", "lora_A.weight"): torch.ones(2, 31)}, "wanted A (2, 32)"),
    ],
)
def test_an_adapter_that_is_no_plain_lora_for_this_model_is_refused_by_name(options, tensors, says, tmp_path):
    write(tmp_path / "adapter", tensors, **options)
    with pytest.raises(ConfigError) as error:
        Protection.from_adapter(tmp_path / "p", tiny("llama"), tmp_path / "adapter", task="one")
    assert says in str(error.value)
    assert not (tmp_path / "p").exists()


def test_files_of_an_adapter_that_cannot_be_read_are_refused(tmp_path):
    start = lambda folder: Protection.from_adapter(tmp_path / "p", tiny("llama"), folder, task="one")  # noqa: E731
    write(tmp_path / "several" / "october")
    with pytest.raises(ConfigError, match="give one of october"):
        start(tmp_path / "several")
    lonely = write(tmp_path / "lonely", {})
    (lonely / "adapter_model.safetensors").rename(lonely / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="may run code"):
        start(lonely)
    half = write(tmp_path / "half", {key("model.layers.0.self_attn.k_proj", "lora_A.weight"): torch.ones(2, 32)})
    with pytest.raises(CheckpointError, match="only one of"):
        start(half)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "incremental_lora"}, "protects nothing"),
        ({"method": "ewc"}, "protects nothing"),
        ({"mode": "paper"}, "mode is paper"),
        ({"memory_source": "sketch"}, "memory_source is sketch"),
        ({"lora": LoraSettings(target_modules="all-linear")}, "later tasks would train"),
        ({"full_modules": "gate_proj"}, "later tasks would train"),
    ],
)
def test_methods_and_layers_that_could_not_be_protected_are_refused(settings, says, tmp_path):
    write(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=says):
        Protection.from_adapter(tmp_path / "p", tiny("llama"), tmp_path / "adapter", task="one", **settings)
    assert not (tmp_path / "p").exists()


def test_only_a_first_task_can_come_from_elsewhere(adapters, tmp_path):
    arguments = (tmp_path / "p", tiny("llama"), adapters("llama"))
    Protection.from_adapter(*arguments, task="one")
    with pytest.raises(ConfigError, match="has learned one already"):
        Protection.from_adapter(*arguments, task="two")
    with pytest.raises(ConfigError, match="wanted the plain base model"):
        wrapped = get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj"]))
        Protection.from_adapter(tmp_path / "q", wrapped, adapters("llama"), task="one")


def test_finetuned_models_that_are_no_pair_are_refused_by_name(tmp_path):
    start = lambda tuned: Protection.from_finetuned(  # noqa: E731
        tmp_path / "p", tiny("llama"), tuned, task="one", rows=loader("llama")
    )
    with pytest.raises(ConfigError, match="the same weights"):
        start(tiny("llama"))
    resized = tiny("llama")
    resized.resize_token_embeddings(len(tokenizer("llama")) + 8, mean_resizing=False)
    with pytest.raises(ConfigError, match=r"`model.embed_tokens.weight` is .* resize the base model"):
        start(resized)
    untied = tiny("llama")
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.clone())
    with pytest.raises(ConfigError, match=r"`lm_head.weight` is a parameter of the fine-tuned model"):
        start(untied)
    broken = tiny("llama")
    with torch.no_grad():
        broken.model.norm.weight[0] = torch.inf
    with pytest.raises(ConfigError, match=r"`model.norm.weight` has values that are not finite"):
        start(broken)
    assert not (tmp_path / "p").exists()
