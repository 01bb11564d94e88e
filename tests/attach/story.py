"""The rows, the models and the scores of the story that docs/attach.md tells: October, then November."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gorp.demo.run import DATA


MONTHS = {"october": "snips", "november": "clinc150"}
"""Month -> the shipped data set that plays its rows."""


def turns(row: dict[str, str]) -> dict[str, Any]:
    """A labelled text as TRL's conversational prompt and completion."""
    prompt = [{"role": "user", "content": row["text"]}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["label"]}]}


def rows(month: str, part: str, count: int) -> list[dict[str, Any]]:
    lines = (DATA / MONTHS[month] / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [turns(json.loads(line)) for line in lines[:count]]


def write_rows(folder: Path, count: int) -> None:
    """Write october.jsonl and november.jsonl."""
    for month in MONTHS:
        lines = "\n".join(json.dumps(row) for row in rows(month, "train", count))
        (folder / f"{month}.jsonl").write_text(lines + "\n", encoding="utf-8")


def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def accuracy(model: Any, folder: Path, month: str, count: int) -> float:
    """Percent of a month's test rows that the model answers right, greedily."""
    tok = tokenizer(folder)
    model.eval()
    right = 0
    for row in rows(month, "eval", count):
        ids = tok.apply_chat_template(row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=tok.pad_token_id)
        answer = tok.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        right += answer.strip() == row["completion"][0]["content"]
    return 100.0 * right / count


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
