"""A tiny project on disk: a saved model, two tasks, a YAML; and what is there afterwards."""

import json
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save

from gorp.storage import file_sha256, read_tensors
from gorp.workspace import load_config, run_sequence
from gorp.workspace.rollback import rollback
from tests.models_small import tiny_llama, tiny_t5
from tests.tokenizers_small import llama_tokenizer, t5_tokenizer


def make_project(folder: Path, *, family: str = "t5", **changes: Any) -> Path:
    """Write model, rows and `run.yaml` into `folder`; returns the YAML's path.

    Args:
        folder: Made when it does not exist.
        family: "t5" or "llama".
        changes: Blocks of the YAML that replace those below.
    """
    save_model(folder / "model", family=family)
    for number, name in enumerate(("one", "two"), 1):
        write_rows(folder / f"{name}.jsonl", number, 24)
        write_rows(folder / f"{name}_eval.jsonl", number, 6)
    return write_config(folder, **changes)


def branched(folder: Path, **blocks: Any) -> Path:
    """Train two branches in the workspace `run` of a Llama: v1 (one) and v2 (two), then from v1 again v3 (three)."""
    path = make_project(folder, family="llama", **blocks)
    write_rows(folder / "three.jsonl", 3, 24)
    write_rows(folder / "three_eval.jsonl", 3, 6)
    run_sequence(load_config(path), folder / "run")
    rollback(folder / "run", version="v1")
    path = write_config(folder, tasks=[task("one"), task("three")], **blocks)
    run_sequence(load_config(path), folder / "run")
    return folder


def write_config(folder: Path, **changes: Any) -> Path:
    """Write `run.yaml` anew, with blocks replaced; a block that is None is left out."""
    blocks = {
        "model": {"path": "model"},
        "method": {"name": "gorp", "rank": 4, "refresh_every": 3},
        "training": {"per_device_train_batch_size": 4, "learning_rate": 5e-3, "save_steps": 2, "num_train_epochs": 1},
        "encoding": {"max_prompt_tokens": 48, "max_completion_tokens": 8},
        "eval": {"max_new_tokens": 4},
        "tasks": [task("one"), task("two")],
        "gate": {"enabled": False},
        "seed": 0,
    } | changes
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in blocks.items() if value is not None}))
    return path


def task(name: str, **changes: Any) -> dict[str, Any]:
    """One entry of `tasks:`."""
    labels = ["true", "false"]
    entry = {"name": name, "train": f"{name}.jsonl", "eval": f"{name}_eval.jsonl", "labels": labels, "dev_rows": 0}
    return entry | {"metric": "label_ranking"} | changes


def save_model(folder: Path, *, family: str = "t5", seed: int = 0) -> None:
    """A tiny random model and its tokenizer."""
    tokenizer = t5_tokenizer() if family == "t5" else llama_tokenizer()
    (tiny_t5 if family == "t5" else tiny_llama)(tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(path: Path, task_number: int, count: int) -> None:
    """Rows whose label one word decides, another word for each task."""
    words = [("green", "red"), ("World", "Sports"), ("early", "late")][task_number - 1]
    rows = [{"text": f"{words[i % 2]} light {i}", "label": ("true", "false")[i % 2]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tree_hash(folder: Path) -> dict[str, str]:
    """Return what is below a folder: path -> SHA-256 of a file, target of a link, or the kind of another entry."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            what = f"link to {path.readlink()}"
        elif path.is_file():
            what = file_sha256(path)
        else:
            what = "folder" if path.is_dir() else "other"
        found[str(path.relative_to(folder))] = what
    return found


def weights(workspace: Path, version: str) -> dict[str, tuple[dict[str, bytes], dict[str, Any]]]:
    """Return the tensors of a version as bytes, and the headers of their files as dictionaries."""
    contents = {}
    for path in sorted((workspace / "versions" / version).glob("*.safetensors")):
        tensors, header = read_tensors(path)
        contents[path.name] = ({name: save({"x": tensor}) for name, tensor in tensors.items()}, header)
    return contents


def without_digests(workspace: Path) -> None:
    """Rewrite a workspace to the format of gorp 0.1.0: no mark, and fewer digests."""
    (workspace / "gorp-workspace.json").unlink()
    path = workspace / "ledger.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    kept = ("time", "event", "version", "parent", "task")
    events = [{key: event[key] for key in kept} for event in events if event["event"] == "version"]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    (workspace / "CURRENT").write_text((workspace / "CURRENT").read_text().split()[0] + "\n")
    path = workspace / "config.json"
    config = json.loads(path.read_text())
    source = (workspace / config["source"]).resolve()
    path.write_text(json.dumps({"source": str(source), "config": config["config"]}))
    path = workspace / "eval/scores.json"
    scores = json.loads(path.read_text())
    for cell in (cell for row in scores.values() for cell in row.values()):
        del cell["samples"], cell["conditions"], cell["digest"]
    path.write_text(json.dumps(scores))
