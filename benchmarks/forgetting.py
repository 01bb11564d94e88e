"""Compare methods on short task sequences that cause strong forgetting: each task has its own label words.

    python benchmarks/forgetting.py run   --data DATA --out DIR [--half dev] [--variants gorp ...] [--seeds 0 1]
    python benchmarks/forgetting.py table --out DIR [--half dev]
    python benchmarks/forgetting.py picture --out DIR --to FILE [--half dev]

The model is gorp-tiny-t5, with LoRA on every linear layer, gorp's cores at their default layers, 192 rows per task, and
three epochs. A prompt is the text and a short question, without the list of answers. DATA has the folders `cl15` and
`unseen`, named as in the manifest of the benchmark data. Choices are made on the tasks of `dev`; those of `test` and
`last` are for reported numbers. The three groups share no row and no set of labels. A default was changed because of
results on `test`, so nothing was chosen on `last` only. All rows come from the train files; the test files are not
used.

A task is scored twice: by exact match of the generated answer, and by the most likely of the task's labels. The second
score also counts an answer that the model would not generate by itself any more. scipy is installed by
`pip install -e '.[benchmark]'`.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from matplotlib.figure import Figure
from quality import say
from scipy.stats import spearmanr
from torch import nn

from gorp.benchmark import Cell, collect, learn_in_turn, run_grid
from gorp.benchmark.cell import load
from gorp.data import Encoding, Task
from gorp.data.split import row_hash
from gorp.evaluation import AccuracyMatrix, EvalConfig, score_task, summary
from gorp.methods.base import Method
from gorp.training import TaskResult, train_task


@dataclass(frozen=True, kw_only=True)
class Source:
    """Source of a task's rows."""

    folder: str
    question: str
    labels: Mapping[str, str] | None = None
    """Label in the data -> its name here; other labels are left out. None: all labels, with their own names."""


def same(*labels: str) -> dict[str, str]:
    """Return a mapping of labels that keep their names."""
    return {label: label for label in labels}


KINDS = ("Company", "Educational Institution", "Artist", "Athlete", "Office Holder", "Building")
OTHER_KINDS = ("Natural Place", "Village", "Animal", "Plant", "Album", "Film", "Written Work")
TOPICS = ("Sports", "Health", "Computers & Internet", "Politics & Government", "Business & Finance")
UTILITY = ("alarm", "calculator", "definition", "find phone", "roll dice", "spelling", "timer", "weather")
FOOD = (
    *("recipe", "calories", "nutrition info", "ingredient substitution"),
    *("cook time", "food last", "restaurant reservation", "meal suggestion"),
)
CARDS = ("activate my card", "card arrival", "change pin", "terminate account", "exchange rate", "request refund")
LIFE = (
    *("Society & Culture", "Science & Mathematics", "Education & Reference"),
    *("Entertainment & Music", "Family & Relationships"),
)
TRAVEL = ("book flight", "car rental", "carry on", "exchange rate", "lost luggage", "plug type", "timezone", "vaccines")

SOURCES = {
    "news": Source(folder="cl15/agnews", question="What is this news about?"),
    "utility": Source(folder="unseen/clinc150", question="What is asked for?", labels=same(*UTILITY)),
    "questions": Source(
        folder="cl15/yahoo", question="Which category does this question belong to?", labels=same(*TOPICS)
    ),
    "kinds": Source(folder="cl15/dbpedia", question="What kind of thing is described?", labels=same(*KINDS)),
    "products": Source(
        folder="cl15/amazon",
        question="Is the review positive or negative?",
        labels={"very negative": "negative", "very positive": "positive"},
    ),
    "snips": Source(folder="unseen/snips", question="What does the user want?"),
    "places": Source(
        folder="cl15/yelp",
        question="Did the guest like it?",
        labels={"very negative": "no", "very positive": "yes"},
    ),
    "things": Source(folder="cl15/dbpedia", question="What is this text about?", labels=same(*OTHER_KINDS)),
    "travel": Source(folder="unseen/clinc150", question="What does the traveller ask for?", labels=same(*TRAVEL)),
    "emotion": Source(folder="unseen/SuperNI/task875_emotion_classification", question="Which emotion is expressed?"),
    "bank": Source(folder="unseen/banking77", question="What does the customer ask about?", labels=same(*CARDS)),
    "phrases": Source(
        folder="unseen/SuperNI/task363_sst2_polarity_classification",
        question="How does the critic find it?",
        labels={"POS": "good", "NEG": "bad"},
    ),
    "kitchen": Source(folder="unseen/clinc150", question="What does the cook ask for?", labels=same(*FOOD)),
    "life": Source(folder="cl15/yahoo", question="What is the question about?", labels=same(*LIFE)),
    "tweets": Source(
        folder="unseen/SuperNI/task1687_sentiment140_classification",
        question="What is the mood of the writer?",
        labels={"positive": "happy", "negative": "sad"},
    ),
}

ORDERS = {
    "dev": (
        ("news", "utility", "questions", "kinds", "products"),
        ("products", "kinds", "questions", "utility", "news"),
    ),
    "test": (
        ("snips", "things", "travel", "places", "emotion"),
        ("emotion", "travel", "snips", "things", "places"),
        ("places", "things", "emotion", "travel", "snips"),
    ),
    "last": (
        ("bank", "phrases", "life", "kitchen", "tweets"),
        ("tweets", "kitchen", "bank", "phrases", "life"),
        ("life", "tweets", "phrases", "bank", "kitchen"),
    ),
}
WORDS = 22
"""Words of a text that are kept."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sequential_lora": ("sequential_lora", {}),
    "sequential_full": ("sequential_full", {}),
    "incremental_lora": ("incremental_lora", {}),
    "ewc": ("ewc", {}),
    "olora": ("olora", {}),
    "protected_full": ("protected_full", {}),
    "gorp": ("gorp", {}),
    "gorp, S from gradients": ("gorp", {"memory_source": "sketch", "adapter_rows": "trained", "budget": 0.5}),
    "gorp, rows trained": ("gorp", {"adapter_rows": "trained"}),
    "gorp, adapters alone": ("gorp", {"full_modules": "none"}),
    "gorp, cores everywhere": ("gorp", {"full_modules": "all-linear"}),
    "gorp, paper mode": ("gorp", {"mode": "paper"}),
}


def read(name: str, data: Path, *, train: int, scored: int) -> Task:
    """Read one task: `train` training rows and `scored` other rows, the same for every method and seed."""
    source, rows = SOURCES[name], {}
    for line in (data / source.folder / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        label = str(row["label"])
        if source.labels is not None and label not in source.labels:
            continue
        text = row.get("sentence", row.get("input"))
        for heading in ("Title:", "Text:", "Question:"):
            text = text.replace(heading, "")
        text = " ".join(text.split()[:WORDS])
        if text and label:
            rows[f"{text}\n{source.question}"] = label if source.labels is None else source.labels[label]
    drawn = sorted(rows.items(), key=lambda row: row_hash(0, *row))
    parts = [drawn[:train], drawn[train : train + scored]]
    train_rows, eval_rows = ({"prompt": [p for p, _ in x], "completion": [c for _, c in x]} for x in parts)
    return Task(
        name=name,
        train=Dataset.from_dict(train_rows),
        dev=None,
        eval=Dataset.from_dict(eval_rows),
        labels=tuple(sorted(set(rows.values()))),
        metric="exact_match",
        source=source.folder,
    )


def run(cell: Cell, data: Path) -> dict[str, Any]:
    """Run one cell. The result is that of `gorp.benchmark.run_cell` and `ranked`, the summary by label ranking."""
    started = time.perf_counter()
    tasks = [read(name, data, train=cell.train_rows, scored=cell.eval_rows) for name in cell.order]
    model, tokenizer = load(cell)
    encoding, config = Encoding(max_prompt_tokens=cell.max_prompt_tokens), EvalConfig(batch_size=50, max_new_tokens=12)
    ranked = AccuracyMatrix([task.name for task in tasks])

    def train(method: Method, task: Task, rows: Dataset, **where: Any) -> TaskResult:
        return train_task(model, tokenizer, method, rows, encoding=encoding, **where)

    def score(served: nn.Module, task: Task, row: int) -> tuple[float, int]:
        by_rank = replace(task, metric="label_ranking")
        ranking = score_task(served, tokenizer, by_rank, encoding=encoding, config=config)
        ranked.set(row, task.name, ranking.score, ranking.rows)
        generated = score_task(served, tokenizer, task, encoding=encoding, config=config)
        return generated.score, generated.rows

    return learn_in_turn(cell, model, tasks, train=train, score=score, started=started) | {
        "ranked": summary(ranked) | {"matrix": ranked.to_dict()}
    }


def cells(name: str, rate: float, args: argparse.Namespace) -> list[Cell]:
    """Return the cells of one variant, for all orders and seeds."""
    method, options = VARIANTS[name]
    return [
        Cell(
            method=method,
            options=options,
            lora={"target_modules": "all-linear", "r": args.r, "lora_alpha": 4.0 * args.r},
            training={
                "learning_rate": rate,
                "num_train_epochs": args.epochs,
                "per_device_train_batch_size": args.batch,
            },
            model=args.model,
            order=order,
            train_rows=192,
            eval_rows=100,
            cells="ends",
            max_prompt_tokens=64,
            seed=seed,
        )
        for seed in args.seeds
        for order in [ORDERS[args.half][index] for index in args.orders or range(len(ORDERS[args.half]))]
    ]


def draw(results: list[dict[str, Any]], to: Path) -> None:
    """Plot the points that each earlier task lost against its reported output change, for all runs that report it."""
    points = []
    for result in results:
        scores, earlier = result["ranked"]["matrix"]["R"], result["facts"].get("earlier", {})
        for index, name in enumerate(result["cell"]["order"][:-1]):
            if moved := earlier.get(name, {}).get("output_change"):
                points.append((100 * moved, scores[index + 1][index] - scores[-1][index]))
    if len(points) < 2:
        print("no run reports an output change")
        return
    x, y = zip(*points, strict=True)
    found = spearmanr(x, y)
    print(f"{len(points)} earlier tasks: rank correlation {found.statistic:.2f} (p {found.pvalue:.1g})")
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.scatter(x, y, s=14, color="#0072b2")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xscale="log", xlabel="output change of the task, %", ylabel="points lost, label ranking")
    figure.savefig(to, metadata={"Date": None})


def main() -> None:
    """Parse the arguments and run the stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["run", "table", "picture"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--to", type=Path, help="file of the picture")
    parser.add_argument("--half", choices=list(ORDERS), default="dev")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--rates", type=float, nargs="*", default=[2e-3])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--orders", type=int, nargs="*", help="orders of --half, by number from 0; default: all")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--model", default="gorp-tiny-t5", help="a folder, or a hub id")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = {(name, rate): cells(name, rate, args) for name in args.variants for rate in args.rates}
    if args.stage == "picture":
        if args.to is None:
            parser.error("picture needs --to FILE")
        draw([result for group in wanted.values() for result in collect(group, args.out)], args.to)
        return
    if args.stage == "run":
        run_grid([cell for group in wanted.values() for cell in group], args.out, args.data, report=say, run=run)
        return
    print("| | rate | runs | AP | BWT | LA | AP, ranked | BWT, ranked | capacity |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (name, rate), group in wanted.items():
        if results := collect(group, args.out):
            tables = [[r[key] for r in results] for key in ("ap", "bwt", "la")]
            tables += [[r["ranked"][key] for r in results] for key in ("ap", "bwt")]
            means = [f"{sum(x) / len(results):.1f}" for x in tables]
            used = [r["facts"].get("capacity_mean") or 0.0 for r in results]
            print(f"| {name} | {rate:g} | {len(results)} | {' | '.join(means)} | {sum(used) / len(used):.2f} |")


if __name__ == "__main__":
    main()
