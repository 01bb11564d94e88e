"""The model card of an export: README.md, with the front matter that the Hugging Face hub reads.

All text that comes from data, models or names is escaped, so that it cannot become markup or YAML.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gorp.evaluation import FORMULAS, MEANINGS, AccuracyMatrix, summary
from gorp.export.wording import sentences
from gorp.report.tables import escaped, markdown_table, matrix_markdown
from gorp.report.wording import MATRIX_READING, number


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""Names that can be those of a model on the hub."""


def card(facts: Mapping[str, Any], matrix: AccuracyMatrix | None) -> str:
    """Return the model card as Markdown.

    Args:
        facts: What is written to gorp-export.json: `form`, `version`, `base`, `tasks`, `method`, `dtype`, `leak`,
            `held` (sentences on versions that the gate held), and for an adapter `rank` and its errors; or `versions`,
            the facts of several adapters.
        matrix: Scores of the learned tasks; None if there are none.
    """
    parts = [_front(facts), *_what(facts), *_loading(facts)]
    if matrix is not None:
        parts += ["## Scores\n", matrix_markdown(matrix), f"\n{MATRIX_READING}\n", *_measures(matrix)]
    if facts["tasks"]:
        parts += ["## Tasks\n", _tasks(facts["tasks"])]
    parts += ["## Measured on this export\n", *_measured(facts)]
    parts += ["## Method\n", f"`{json.dumps(facts['method'], sort_keys=True).replace('`', '')}`\n", *_leak(facts)]
    return "\n".join(parts)


def _front(facts: Mapping[str, Any]) -> str:
    """Return the YAML front matter; values are JSON, which is YAML."""
    name = facts["base"]["name"]
    base = f"base_model: {json.dumps(name)}" if HUB_ID.fullmatch(name) else "# base_model: OWNER/NAME on the hub"
    library, pipeline = ("peft", "lora") if facts["form"] == "lora" else ("transformers", "merged")
    relation = "adapter" if facts["form"] == "lora" else "finetune"
    lines = [
        "---",
        "# license: fill in; it must fit the licences of the base model and of the data",
        base,
        f"base_model_relation: {relation}",
        f"library_name: {library}",
        f'tags: ["gorp", "continual-learning", "{pipeline}"]',
        "---",
    ]
    return "\n".join(lines) + "\n"


def _what(facts: Mapping[str, Any]) -> Iterator[str]:
    name, tasks = escaped(facts["base"]["name"]), [escaped(task) for task in facts["tasks"]]
    yield f"# {name}, fine-tuned on {', '.join(tasks) or 'no task yet'}\n"
    learned = f"one after another on {len(tasks)} tasks" if len(tasks) > 1 else "on one task"
    if "versions" in facts:
        what = f"One LoRA adapter for each version ({', '.join(facts['versions'])}), each the whole change to the base"
    elif facts["form"] == "lora":
        what = f"A LoRA adapter of rank {facts['rank']}, the whole change of version {facts['version']} to the base"
    else:
        what = f"The merged weights of version {facts['version']}, in {facts['dtype']}"
    yield f"{what}. It was trained with gorp {learned}.\n"
    for line in facts.get("held", ()):
        yield f"**{escaped(line)}.**\n"
    revision = f", revision {escaped(facts['base']['revision'])}" if facts["base"].get("revision") else ""
    yield f"- Base model: {name}{revision}; SHA-256 of its weights {facts['base']['sha256'][:16]}…"
    yield "- Licence: fill in, here and in the first lines of this file\n"


def _loading(facts: Mapping[str, Any]) -> Iterator[str]:
    auto = "AutoModelForSeq2SeqLM" if facts["encoder_decoder"] else "AutoModelForCausalLM"
    yield "## Loading\n"
    yield "```python"
    yield f"from transformers import {auto}, AutoTokenizer"
    if facts["form"] == "lora":
        folder = f"FOLDER/{list(facts['versions'])[-1]}" if "versions" in facts else "FOLDER"
        yield "from peft import PeftModel"
        yield f'model = PeftModel.from_pretrained({auto}.from_pretrained("BASE"), "{folder}")'
    else:
        yield f'model, tokenizer = {auto}.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")'
    yield "```\n"


def _measures(matrix: AccuracyMatrix) -> Iterator[str]:
    for name, value in summary(matrix).items():
        if value is not None:
            yield f"- {MEANINGS[name]}: **{number(value)}**, `{FORMULAS[name]}`"
    yield ""


def _tasks(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    heading = ["task", "training rows", "fingerprint of them", "test rows", "fingerprint of them", "metric"]
    lines = [
        [
            name,
            _shown(task.get("train_rows")),
            _shown(task.get("train_fingerprint"), 16),
            _shown(task.get("eval_rows")),
            _shown(task.get("eval_fingerprint"), 16),
            _shown(task.get("metric")),
        ]
        for name, task in tasks.items()
    ]
    return markdown_table([heading, *lines])


def _measured(facts: Mapping[str, Any]) -> Iterator[str]:
    for version, item in facts.get("versions", {facts["version"]: facts}).items():
        lines: Sequence[str] = [f"- {escaped(line)}" for line in sentences({**facts, **item})]
        yield "\n".join([f"{version}:\n", *lines]) + "\n"


def _leak(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts.get("leak") is not None:
        yield (
            f"Leak of the last task's trained change, ‖ΔW S‖ / ‖ΔW‖: {facts['leak']:.1e} at worst. It covers only the "
            "inputs in the protected subspace S; the scores show what was forgotten.\n"
        )


def _shown(value: Any, letters: int | None = None) -> str:
    return "–" if value is None else str(value)[:letters]
