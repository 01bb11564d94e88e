"""Make the data of `gorp demo`: four small, real classification tasks, cut out of public datasets.

    python scripts/make_demo_data.py DATA_ROOT [--out src/gorp/demo/data]

DATA_ROOT holds `cl15/dbpedia` and `unseen/{snips,clinc150,banking77}`, each with `train.jsonl` and `test.jsonl`.
The same rows give the same bytes: a row's place is decided by the SHA-256 of its text, never by a random number.
"""

import argparse
import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


MAX_WORDS = 60
OUT = Path(__file__).parents[1] / "src/gorp/demo/data"
CHANGES = (
    "taken: the rows of the chosen labels with the lowest SHA-256 of their text, equally many for each label; "
    "train from the source's train file, eval from its test file",
    f"left out: rows of more than {MAX_WORDS} words; texts with two labels; repeated texts; test texts that also occur "
    "in the train file (texts compared in lower case, without punctuation and extra blanks)",
)
LICENCE_TEXTS = {
    "CC-BY-SA-3.0": "https://creativecommons.org/licenses/by-sa/3.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
}
LICENCES_HEAD = """# Licences of the demo's data

The rows in these folders are other people's work, each under its own licence and not under the project's. They are
small parts of the datasets named here, changed only as stated; the makers endorse neither the changes nor this project.

In every task:

"""


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """What is taken from one source, and what must be said about it."""

    name: str
    folder: str
    """Where it lies under the data root."""
    column: str
    """The text's column in the source."""
    instruction: str
    """The prompt's first line."""
    labels: dict[str, str]
    """Label in the source -> the words that the model answers with, in the order in which the prompt lists them."""
    train_rows: int
    """Rows of each label in train.jsonl."""
    eval_rows: int
    """Rows of each label in eval.jsonl."""
    licence: str
    source: str
    attribution: str
    changes: tuple[str, ...] = ()
    """Changes beyond the common ones."""


def _themselves(labels: str) -> dict[str, str]:
    return {label: label for label in labels.split(", ")}


TASKS = (
    DemoTask(
        name="dbpedia",
        folder="cl15/dbpedia",
        column="sentence",
        instruction="What is the topic of the following paragraph?",
        labels=_themselves(
            "Company, Educational Institution, Artist, Athlete, Office Holder, Mean of Transportation, Building, "
            "Natural Place, Village, Animal, Plant, Album, Film, Written Work"
        ),
        train_rows=30,
        eval_rows=11,
        licence="CC-BY-SA-3.0",
        source="DBpedia ontology classification dataset; abstracts of English Wikipedia as collected by DBpedia 2014",
        attribution="The authors of the Wikipedia articles named in the titles; DBpedia; Xiang Zhang, Junbo Zhao and "
        "Yann LeCun, Character-level Convolutional Networks for Text Classification (2015)",
        changes=("blanks around and doubled blanks inside title and text removed",),
    ),
    DemoTask(
        name="snips",
        folder="unseen/snips",
        column="input",
        instruction="What is the intent of the following utterance?",
        labels={
            "AddToPlaylist": "add to playlist",
            "BookRestaurant": "book restaurant",
            "GetWeather": "get weather",
            "PlayMusic": "play music",
            "RateBook": "rate book",
            "SearchCreativeWork": "search creative work",
            "SearchScreeningEvent": "search screening event",
        },
        train_rows=60,
        eval_rows=21,
        licence="CC0-1.0",
        source="Snips NLU benchmark (2017-06 custom intent engines), in the lower-case split of Goo et al. (2018)",
        attribution="Alice Coucke et al., Snips Voice Platform: an embedded Spoken Language Understanding system for "
        "private-by-design voice interfaces (2018)",
        changes=("intent names written as words; slot annotations dropped",),
    ),
    DemoTask(
        name="clinc150",
        folder="unseen/clinc150",
        column="input",
        instruction="What is the intent of the following query?",
        labels=_themselves(
            "book flight, calories, credit score, flip coin, lost luggage, pto request, recipe, shopping list, "
            "spelling, tell joke, thank you, timer, tire pressure, traffic, translate"
        ),
        train_rows=28,
        eval_rows=10,
        licence="CC-BY-3.0",
        source="CLINC150 (oos-eval, data_full.json)",
        attribution="Stefan Larson et al., An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction "
        "(2019); Clinc, Inc.",
        changes=("15 of the 150 intents kept, out-of-scope rows dropped; underscores in intents written as blanks",),
    ),
    DemoTask(
        name="banking77",
        folder="unseen/banking77",
        column="input",
        instruction="What is the intent of the following customer question?",
        labels=_themselves(
            "activate my card, age limit, apple pay or google pay, card arrival, card swallowed, change pin, "
            "edit personal details, exchange rate, lost or stolen phone, request refund, terminate account, "
            "transfer timing"
        ),
        train_rows=35,
        eval_rows=12,
        licence="CC-BY-4.0",
        source="BANKING77 (task-specific-datasets, banking_data)",
        attribution="Iñigo Casanueva, Tadas Temčinas, Daniela Gerz, Matthew Henderson and Ivan Vulić, "
        "Efficient Intent Detection with Dual Sentence Encoders (2020); PolyAI",
        changes=("12 of the 77 intents kept; underscores in intents written as blanks; doubled blanks removed",),
    ),
)


def same_text_key(text: str) -> str:
    """What two texts share when they are the same but for case, punctuation and blanks."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


def tidy(text: str) -> str:
    """The text with one blank where there were several, line by line, and none at the ends."""
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_rows(path: Path, task: DemoTask) -> list[tuple[str, str]]:
    """All rows of a source file as (text, source's label)."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(tidy(row[task.column]), row["label"]) for row in rows]


def select(rows: list[tuple[str, str]], per_label: int, task: DemoTask, *, taken: set[str]) -> list[dict[str, str]]:
    """`per_label` rows of each label, in the order of their digests; none whose key is in `taken`, none twice."""
    labels_of = defaultdict(set)
    for text, label in rows:
        labels_of[same_text_key(text)].add(label)
    chosen, counts, seen = [], dict.fromkeys(task.labels, 0), set(taken)
    for text, label in sorted(rows, key=lambda row: _digest(row[0])):
        key = same_text_key(text)
        if label not in counts or counts[label] == per_label or key in seen or len(labels_of[key]) > 1:
            continue
        if len(text.split()) > MAX_WORDS:
            continue
        seen.add(key)
        counts[label] += 1
        chosen.append({"text": text, "label": task.labels[label]})
    short = {label: count for label, count in counts.items() if count < per_label}
    if short:
        raise SystemExit(f"{task.name}: {per_label} rows of each label were wanted, the source has too few of {short}")
    return chosen


def make(task: DemoTask, root: Path) -> dict[str, bytes]:
    """The files of one task, by name."""
    train_source = read_rows(root / task.folder / "train.jsonl", task)
    train = select(train_source, task.train_rows, task, taken=set())
    in_train = {same_text_key(text) for text, _ in train_source}
    held_out = select(read_rows(root / task.folder / "test.jsonl", task), task.eval_rows, task, taken=in_train)
    about = {
        "name": task.name,
        "labels": list(task.labels.values()),
        "template": f"{task.instruction}\n{{text}}\nAnswer: ",
        "metric": "label_ranking",
        "rows": {"train": len(train), "eval": len(held_out)},
        "licence": task.licence,
        "source": task.source,
        "attribution": task.attribution,
        "changes": [*CHANGES, *task.changes],
    }
    return {
        "train.jsonl": _json_lines(train),
        "eval.jsonl": _json_lines(held_out),
        "task.json": (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode(),
    }


def _json_lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def licences() -> bytes:
    """LICENSES.md: who made what, under which licence, and what was changed."""
    common = "".join(f"- {change}.\n" for change in CHANGES)
    return (LICENCES_HEAD + common + "".join(_licence(task) for task in TASKS)).encode()


def _licence(task: DemoTask) -> str:
    lines = [
        f"- Licence: [{task.licence}]({LICENCE_TEXTS[task.licence]})",
        f"- Source: {task.source}",
        f"- By: {task.attribution}",
        *(f"- Changed: {change}" for change in task.changes),
    ]
    if task.licence == "CC-BY-SA-3.0":
        lines.append(
            "- Share alike: these rows, as changed here, are under the same licence. An article's authors are listed "
            "in its history on English Wikipedia, under the title that the row begins with."
        )
    return "\n".join(["", f"## {task.name}", "", *lines, ""])


def make_all(root: Path) -> dict[str, bytes]:
    """Every file of the folder, by its path inside it."""
    files = {f"{task.name}/{name}": content for task in TASKS for name, content in make(task, root).items()}
    return files | {"LICENSES.md": licences()}


def main() -> None:
    """Write the folder and say what was written."""
    parser = argparse.ArgumentParser(description="Make the data of `gorp demo` out of the public datasets.")
    parser.add_argument("data_root", type=Path, help="the folder that holds cl15/ and unseen/")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write (default: the package's own folder)")
    arguments = parser.parse_args()
    files = make_all(arguments.data_root)
    for name, content in files.items():
        path = arguments.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        print(f"{len(content):8d}  {path}")
    print(f"{sum(map(len, files.values())):8d}  bytes together")


if __name__ == "__main__":
    main()
