r"""Read the fifteen tasks of the CL benchmark, with their official prompts, from either of two folder layouts.

    <root>/<category>/<dataset>/{train,dev,test}.json, labels.json      the folder CL_Benchmark as O-LoRA publishes it
    <root>/<dataset>/{train,test}.jsonl, labels.json, task.json         flat; task.json holds category and dataset

A row has `sentence` and `label`. The prompt is

    [Task:<category>\nDataset:<dataset>\n]<instruction>Option: <labels> \n<sentence>\nAnswer:

The part in brackets is optional (`task_name_in_prompt`). COPA has neither instruction nor options, because its
sentences contain both.

MNLI's test set has rows without an agreed label, written "-". They are kept, because published scores count them as
wrong; a note says how many there are.

References:
    Wang et al., *Orthogonal Subspace Learning for Language Model Continual Learning*, arXiv:2310.14152.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from gorp.data.files import parse_json, read_rows
from gorp.data.form import Form, with_forms
from gorp.data.formats import check_label
from gorp.data.rows import check_length, text_column
from gorp.data.split import same_rows
from gorp.data.task import Task, build_task
from gorp.errors import DataError, nearest, shown


INSTRUCTIONS: dict[str, str] = {
    "NLI": 'What is the logical relationship between the "sentence 1" and the "sentence 2"? '
    "Choose one from the option.\n",
    "QQP": 'Whether the "first sentence" and the "second sentence" have the same meaning? '
    "Choose one from the option.\n",
    "SC": "What is the sentiment of the following paragraph? Choose one from the option.\n",
    "TC": "What is the topic of the following paragraph? Choose one from the option.\n",
    "BoolQA": "According to the following passage, is the question true or false? Choose one from the option.\n",
    "MultiRC": "According to the following passage and question, is the candidate answer true or false? "
    "Choose one from the option.\n",
    "WiC": "Given a word and two sentences, whether the word is used with the same sense in both sentence? "
    "Choose one from the option.\n",
    "COPA": "",
}
"""Category -> its official instruction, verbatim. Empty: no instruction and no options."""

BLANK = Form(lead=" ")
"""A decoder writes a space between `Answer:` and the label."""

NO_LABEL = "-"
"""The label of rows on which annotators did not agree. No answer to such a test row is correct."""


def official_prompt(
    sentence: str, *, category: str, dataset: str, labels: Sequence[str], task_name_in_prompt: bool = False
) -> str:
    """Return the prompt for one sentence.

    Args:
        sentence: The input.
        category: A key of `INSTRUCTIONS`.
        dataset: Name of the data set; used only with `task_name_in_prompt`.
        labels: The closed label set in official order.
        task_name_in_prompt: Begin with the names of category and data set. This tells the model which task the row
            belongs to, which many continual-learning settings leave unknown.
    """
    prefix = f"Task:{category}\nDataset:{dataset}\n" if task_name_in_prompt else ""
    instruction = INSTRUCTIONS[category]
    options = f"Option: {', '.join(labels)} \n" if instruction else ""
    return f"{prefix}{instruction}{options}{sentence}\nAnswer:"


def load_cl_benchmark(
    root: Path | str,
    dataset: str,
    *,
    name: str | None = None,
    metric: str = "exact_match",
    task_name_in_prompt: bool = False,
    seed: int = 0,
    dev_rows: int = 0,
    limit_train: int | None = None,
    limit_eval: int | None = None,
) -> Task:
    """Read one data set of the benchmark. The official test rows are the task's eval rows.

    Args:
        root: Folder of either layout.
        dataset: Name of the data set's folder, for example `agnews`.
        name: Name of the task; None for the name of the data set.
        metric: One of `METRICS`.
        task_name_in_prompt: See `official_prompt`.
        seed: Seed of the dev split and of the limits.
        dev_rows: Rows split off train for dev; 0 for none. The published dev files repeat the test rows and are never
            used.
        limit_train: Rows of train to keep, balanced over the labels; None for all.
        limit_eval: Rows of eval to keep, balanced over the labels; None for all.

    Raises:
        DataError: If the folder does not have the data set (the message suggests the nearest name), a file is missing,
            or a row is invalid.
    """
    folder = _dataset_folder(Path(root), dataset)
    card = _read_json(folder / "task.json", dict) if (folder / "task.json").is_file() else {}
    labels = tuple(_read_json(folder / "labels.json", list))
    category, official_name = card.get("category", folder.parent.name), card.get("dataset", folder.name)
    for file, texts in (("labels.json", labels), ("task.json", (category, official_name))):
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{folder / file}: found {shown(str(list(texts)))}; wanted text that is not blank.")
    if category not in INSTRUCTIONS:
        raise DataError(
            f"{folder}: there is no official prompt for the category `{category}`; wanted one of "
            f"{', '.join(INSTRUCTIONS)}.{nearest(category, INSTRUCTIONS)} Or read it as `text_label` with a template."
        )

    def rendered(path: Path, *, strict: bool) -> Dataset:
        prompts, completions = [], []
        for row in read_rows(path):
            sentence, label = text_column(row, "sentence"), text_column(row, "label")
            if strict or label != NO_LABEL:
                check_label(row, label, labels)
            prompt = official_prompt(
                sentence,
                category=category,
                dataset=official_name,
                labels=labels,
                task_name_in_prompt=task_name_in_prompt,
            )
            check_length(row, "prompt", prompt)
            prompts.append(prompt)
            completions.append(label)
        return with_forms(prompts, completions, [BLANK] * len(prompts))

    train, test = rendered(_required(folder, "train"), strict=True), rendered(_required(folder, "test"), strict=False)
    notes = [f"status of the rows: {card['status']}"] if "status" in card else []
    if unlabelled := test["completion"][:].count(NO_LABEL):
        notes.append(
            f"{unlabelled} of {len(test)} eval rows have no agreed label (`{NO_LABEL}`) and always count as wrong"
        )
    if (dev := _optional(folder, "dev")) and same_rows(rendered(dev, strict=False), test):
        notes.append("the dev file repeats the test rows and is not used; dev is cut from train")
    return build_task(
        name=folder.name if name is None else name,
        train=train,
        evaluation=test,
        labels=labels,
        metric=metric,
        source=f"CL_Benchmark {category}/{official_name}, {folder}",
        seed=seed,
        dev_rows=dev_rows,
        limit_train=limit_train,
        limit_eval=limit_eval,
        notes=tuple(notes),
    )


def _dataset_folder(root: Path, dataset: str) -> Path:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Give the folder that contains the benchmark's data sets.")
    found = {
        path.parent.name: path.parent for path in sorted([*root.glob("*/labels.json"), *root.glob("*/*/labels.json")])
    }
    if dataset not in found:
        raise DataError(
            f"{root}: no data set `{dataset}` with a labels.json; found: {', '.join(sorted(found)) or 'none'}."
            f"{nearest(dataset, found)}"
        )
    return found[dataset]


def _required(folder: Path, part: str) -> Path:
    if (path := _optional(folder, part)) is None:
        raise DataError(f"{folder}: neither {part}.jsonl nor {part}.json exists. Add one of them.")
    return path


def _optional(folder: Path, part: str) -> Path | None:
    paths = (folder / f"{part}.jsonl", folder / f"{part}.json")
    return next((path for path in paths if path.is_file()), None)


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = parse_json(path.read_text(encoding="utf-8"), place=str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(value, kind):
        raise DataError(f"{path}: contains a {type(value).__name__}; wanted a {kind.__name__}.")
    return value
