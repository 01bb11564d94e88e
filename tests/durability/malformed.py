"""Malformed inputs: for each a name, how it is made, the command, what the message must hold, and the exit code.

A message says what came (or which file, line or option), what was wanted, and what to do. Of the words here at least
one is neither in the command nor in the name of a file, so a message that repeats only these does not hold them all.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


Make = Callable[[Path], object]
Case = tuple[str, Make, tuple[str, ...], str, int]
"""Name; what it does to the project; the command, in which PROJECT is the project's folder; words; exit code."""

YAML = """\
model: {path: ./model}
method: {name: gorp, rank: 4, refresh_every: 3}
lora: {r: 4, target_modules: all-linear}
training: {learning_rate: 5e-3, max_steps: 2, per_device_train_batch_size: 4}
encoding: {max_prompt_tokens: 48, max_completion_tokens: 8}
eval: {max_new_tokens: 2}
gate: {margin: 2.0}
tasks:
  - {name: one, train: one.jsonl, eval: one_eval.jsonl}
seed: 0
"""
TRAIN = ("train", "PROJECT/bot.yaml")
W, Q = "model.safetensors", "decoder.block.0.layer.0.SelfAttention.q.weight"
ROW = b'{"prompt": "a green light", "completion": "true"}\n'


def yaml(name: str, old: str, new: str, words: str, code: int = 2) -> Case:
    """A YAML in which `old` is replaced."""
    assert old in YAML, old
    return name, lambda folder: (folder / "bot.yaml").write_text(YAML.replace(old, new, 1)), TRAIN, words, code


def training(key: str, value: str, words: str) -> Case:
    """A YAML with one more key of `training`."""
    return yaml(f"training.{key}: {value}", "learning_rate: 5e-3", f"learning_rate: 5e-3, {key}: {value}", words)


def whole(name: str, content: bytes, words: str) -> Case:
    """A YAML of this content."""
    return name, lambda folder: (folder / "bot.yaml").write_bytes(content), TRAIN, words, 2


def rows(name: str, content: bytes, words: str) -> Case:
    """Training rows of this content."""
    return name, lambda folder: (folder / "one.jsonl").write_bytes(content), TRAIN, words, 1


def after(name: str, content: bytes, words: str) -> Case:
    """A good row, and then one of this content."""
    return rows(name, ROW + content + b"\n" + ROW, words)


def named(name: str, text: str, words: str) -> Case:
    """Rows in a file of another name."""

    def make(folder: Path) -> None:
        (folder / name).write_text(text)
        (folder / "bot.yaml").write_text(YAML.replace("one.jsonl", name))

    return f"rows in {name}", make, TRAIN, words, 1


def model(name: str, make: Make, words: str) -> Case:
    """A model folder that was changed."""
    return name, lambda folder: make(folder / "model"), TRAIN, words, 1


def settings(**changes: Any) -> Make:
    """Changes of the model's config.json."""

    def make(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return make


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Make:
    """Changes of the model's tensors."""

    def make(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return make


def link_to_nothing(folder: Path) -> None:
    (folder / W).unlink()
    (folder / W).symlink_to("nothing")


def remove(*names: str) -> Make:
    """Files of a folder that are removed."""
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


def replaced(name: str, content: bytes) -> Make:
    """A file of a folder with another content."""
    return lambda folder: (folder / name).write_bytes(content)


def instead(what: str, make: Make, words: str) -> Case:
    """Instead of the file of training rows, something else; `make` gets its path."""

    def change(folder: Path) -> None:
        (folder / "one.jsonl").unlink()
        make(folder / "one.jsonl")

    return f"{what} as rows", change, TRAIN, words, 1


ROWS: list[Case] = [
    rows("no row", b"", "one.jsonl: empty at least one row"),
    rows("only blanks", b" \n \n", "one.jsonl: empty"),
    rows("a list of rows", b"[" + ROW.strip() + b"]\n", "one.jsonl, line 1: list object"),
    rows("UTF-16 rows", ROW.decode().encode("utf-16"), "one.jsonl, line 1: UTF-8"),
    rows("other columns", b'{"q": "a", "a": "b"}\n', "one.jsonl, line 1: format prompt completion"),
    rows("no columns", b"{}\n", "one.jsonl, line 1: format"),
    rows("a chat without text", b'{"messages": [{"role": "user"}]}\n', "one.jsonl, line 1, turn 1 messages content"),
    rows("a chat that is null", b'{"messages": null}\n', "one.jsonl, line 1: messages"),
    rows("a chat of texts", b'{"messages": ["a", "b"]}\n', "one.jsonl, line 1: messages role"),
    rows("a label that is a number", b'{"text": "a", "label": 1}\n', "one.jsonl, line 1: label number text"),
    after("an empty line", b"", "one.jsonl, line 2: empty"),
    after("a cut line", ROW[:-9], "one.jsonl, line 2: JSON"),
    after("NULs", b"\0" * 50, "one.jsonl, line 2: JSON"),
    after("bytes that are not UTF-8", b'{"prompt": "\xff", "completion": "x"}', "one.jsonl, line 2: UTF-8"),
    after("a lone surrogate", b'{"prompt": "\\ud800", "completion": "x"}', "one.jsonl, line 2: surrogate"),
    after("one in the answer", b'{"prompt": "x", "completion": "\\udfff"}', "one.jsonl, line 2: surrogate"),
    after("a number as prompt", b'{"prompt": 5, "completion": "x"}', "one.jsonl, line 2: prompt number text"),
    after("null as answer", b'{"prompt": "x", "completion": null}', "one.jsonl, line 2: completion null text"),
    after("a list as answer", b'{"prompt": "x", "completion": ["a"]}', "one.jsonl, line 2: completion list text"),
    after("a blank prompt", b'{"prompt": " \\n", "completion": "x"}', "one.jsonl, line 2: prompt blank text"),
    after("a row without an answer", b'{"prompt": "x"}', "one.jsonl, line 2: column completion"),
    after("another format", b'{"text": "x", "label": "y"}', "one.jsonl, line 2: column prompt"),
    after("an integer of 5000 digits", b'{"prompt": ' + b"1" * 5000 + b"}", "one.jsonl, line 2:"),
    after("100000 brackets", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "one.jsonl, line 2:"),
    after("a line of 50 MB", b'{"prompt": "' + b"lorem " * 8_700_000 + b'", "completion": "x"}', "one.jsonl, line 2:"),
    after("a long answer", json.dumps({"prompt": "x", "completion": "light " * 200}).encode(), "max_completion_tokens"),
    instead("nothing", lambda path: None, "one.jsonl: no such file"),
    instead("a folder", lambda path: path.mkdir(), "one: cannot load one.jsonl`: files"),
    instead("a pipe", lambda path: os.mkfifo(path), "one.jsonl pipe regular file"),
    instead("a link to itself", lambda path: path.symlink_to(path.name), "one.jsonl link"),
    instead("a link to nothing", lambda path: path.symlink_to("nothing"), "one.jsonl: no such file"),
    instead("a device", lambda path: path.symlink_to("/dev/zero"), "one.jsonl device regular file"),
    ("eval rows that are cut", replaced("one_eval.jsonl", ROW[:-9]), TRAIN, "one_eval.jsonl, line 1: JSON", 1),
    named("one.csv", "prompt,completion\na,b\nc\n", "one.csv, line 3:"),
    named("two.csv", 'prompt,completion\na,"b\n', "two.csv, line 2:"),
    named("three.csv", "prompt,prompt\na,b\n", "three.csv prompt twice"),
    named("one.parquet", "PAR1 but nothing else", "one.parquet: Parquet"),
    named("one.pkl", "x", "one.pkl: wanted *.jsonl, Parquet"),
    named("one.jsonl.gz", "x", "one.jsonl.gz: wanted *.jsonl, Unpack"),
]  # fmt: skip

MODELS: list[Case] = [
    model("no tokenizer", remove("tokenizer.json", "tokenizer_config.json"), "model: tokenizer"),
    model("an empty tokenizer", replaced("tokenizer.json", b""), "model: tokenizer"),
    model("a tokenizer that is a list", replaced("tokenizer.json", b"[]"), "model: tokenizer"),
    model("no config", remove("config.json"), "model: no config.json save_pretrained"),
    model("a cut config", replaced("config.json", b"{"), "config.json: not whole JSON"),
    model("an empty config", replaced("config.json", b"{}"), "model model_type"),
    model("an unknown kind", settings(model_type="nonsense"), "model nonsense"),
    model("an encoder", settings(model_type="bert", architectures=["BertForMaskedLM"]), "bert T5"),
    model("another kind", settings(model_type="llama", architectures=["LlamaForCausalLM"]), "model: hold only 56,448"),
    model("another width", settings(d_model=64), "model: shape config.json belong"),
    model("a width of -1", settings(d_model=-1), "model: config.json negative -1"),
    model("a width that is text", settings(d_model="x"), "model: config.json d_model expected int"),
    model("more layers", settings(num_layers=7), "model: files lack weights"),
    model("a small vocabulary", settings(vocab_size=10), "model: tokenizer 10"),
    model("code of its own", settings(model_type="evil", auto_map={"AutoConfig": "evil.C"}), "model trust"),
    model("no weights", remove("model.safetensors"), "model safetensors"),
    model("empty weights", replaced("model.safetensors", b""), "model: cannot be loaded"),
    model("weights of text", replaced(W, b"\x10" + b"\0" * 7 + b"x" * 100), "model: cannot be loaded"),
    model("weights of a long header", replaced(W, b"\xff" * 100), "model: cannot be loaded"),
    model("cut weights", lambda folder: os.truncate(folder / "model.safetensors", 50_000), "model: cannot be loaded"),
    model("a weight renamed", weights(lambda tensors: tensors.update(other=tensors.pop(Q))), "model: files lack"),
    model("a NaN", weights(lambda tensors: tensors[Q].data[0].fill_(torch.nan)), f"model: {Q} finite"),
    model("an infinity", weights(lambda tensors: tensors[Q].data[0].fill_(torch.inf)), f"model: {Q} finite"),
    model("only a pickle", lambda folder: (folder / W).rename(folder / "a.bin"), "model safetensors convert"),
    model("a link to no weights", link_to_nothing, f"{W}: link `nothing`, exist"),
]  # fmt: skip
