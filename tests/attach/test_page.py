"""docs/attach.md runs as it stands: the loop, and slowly the script in two processes, also on SmolLM2 with scores."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer

from gorp import Protection
from gorp.data import Collator, Encoding, encode
from gorp.storage import read_tensors
from gorp.weights.base import BaseWeights
from gorp.weights.delta import unpack_deltas
from gorp.workspace import Workspace
from tests.attach import story
from tests.models_small import tiny_llama
from tests.runs import rows, tiny, tokenizer
from tests.tokenizers_small import llama_tokenizer


PAGE = Path(__file__).parents[2].joinpath("docs/attach.md").read_text(encoding="utf-8")
SMOLLM2 = Path(os.environ.get("GORP_SMOLLM2", Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"))
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def block(containing: str) -> str:
    """The first Python block of the page that contains a text."""
    return next(text for text in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S) if containing in text)


def run(folder: Path, *arguments: str) -> str:
    """Run Python in `folder` and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def write_script(folder: Path, model: Path) -> None:
    """Write finetune.py; only the hub id is replaced, because no hub is reachable."""
    text, hub = block("# finetune.py"), "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert text.count(hub) == 1
    (folder / "finetune.py").write_text(text.replace(hub, str(model)), encoding="utf-8")


def served(version, model):
    """`model` with the changes of a version in its weights."""
    BaseWeights(model).load(unpack_deltas(read_tensors(version.folder / "delta.safetensors")[0]))
    return model


@pytest.mark.slow
def test_the_script_protects_october_in_november(tmp_path):
    tok = llama_tokenizer()
    tok.chat_template = TEMPLATE
    tiny_llama(tok).save_pretrained(tmp_path / "small")
    tok.save_pretrained(tmp_path / "small")
    write_script(tmp_path, tmp_path / "small")
    story.write_rows(tmp_path, 24)
    first, second = (run(tmp_path, "finetune.py", month).splitlines()[-1] for month in story.MONTHS)
    assert first == "v1 ['october'] leak: None"
    assert second.startswith("v2 ['october', 'november'] leak: ")
    assert float(second.rpartition(" ")[2]) <= 1e-5
    assert Workspace(tmp_path / "protected").current().contains == ["october", "november"]


def test_the_loop_trains_a_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, tok = tiny("llama"), tokenizer("llama")
    encoded = encode(rows(1), tok, encoder_decoder=False, encoding=Encoding())
    loader = DataLoader(encoded, batch_size=4, collate_fn=Collator(pad_token_id=tok.pad_token_id))  # pyright: ignore
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = {"model": model, "loader": loader, "Protection": Protection}
    exec(compile(block("protection.begin"), "attach.md", "exec"), names)
    version = names["protection"].folder.current
    assert version.name == "v1" and version.contains == ["october"]
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def plain(folder: Path, month: str, model, epochs: int):
    """Train a month without gorp, as a script that merges last month's adapter does; return the merged model."""
    from datasets import load_dataset

    trainer = SFTTrainer(
        model,
        args=SFTConfig(
            output_dir=str(folder / "plain" / month), learning_rate=1e-3, num_train_epochs=epochs,
            per_device_train_batch_size=8, bf16=False, use_cpu=True, report_to="none", save_strategy="no",
        ),
        train_dataset=load_dataset("json", data_files=str(folder / f"{month}.jsonl"), split="train"),
        processing_class=story.tokenizer(SMOLLM2),
        peft_config=LoraConfig(r=8, lora_alpha=32, target_modules="all-linear"),
    )  # fmt: skip
    trainer.train()
    return trainer.model.merge_and_unload()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason=f"there is no folder {SMOLLM2}; `make model` writes it")
def test_on_smollm2_october_is_kept_with_protection_and_lost_without(tmp_path):
    write_script(tmp_path, SMOLLM2)
    story.write_rows(tmp_path, 64)
    for month in story.MONTHS:
        run(tmp_path, "finetune.py", month)
    table = {}
    for version in Workspace(tmp_path / "protected").versions():
        model = story.load(SMOLLM2)
        if version.name != "v0":
            model = served(version, model)
        table[version.name] = [story.accuracy(model, SMOLLM2, month, 40) for month in story.MONTHS]
    merged = story.load(SMOLLM2)
    for month in story.MONTHS:
        merged = plain(tmp_path, month, merged, 4)
        table[f"plain {month}"] = [story.accuracy(merged, SMOLLM2, name, 40) for name in story.MONTHS]
    print(table)
    kept, lost = table["v2"][0] - table["v1"][0], table["plain november"][0] - table["plain october"][0]
    assert table["v2"][1] >= table["v0"][1] + 20  # November is learned
    assert kept >= -10.0
    assert lost <= kept - 10.0
