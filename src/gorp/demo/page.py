"""Present the demo's results: sentences, an HTML page, and a picture."""

import shlex
from collections.abc import Mapping
from typing import Any

from gorp.demo import DemoResult, DemoSettings
from gorp.demo.run import TASKS
from gorp.evaluation import summary
from gorp.report import Answer, Page, Sample, Samples, evenly, picture
from gorp.report.wording import number


NAMES = {"sequential_lora": "ordinary LoRA fine-tuning", "gorp": "gorp"}
"""Name of each method in printed text."""

ABOUT = (
    "gorp fine-tunes a language model on one task after another, without the data of the earlier tasks. For each layer "
    "it stores the main directions of the inputs of the earlier tasks. A new task changes the layer's weights only in "
    "such a way that the layer's outputs along these directions stay the same."
)

NOTE = "One seed and one small model: this shows what the two methods do, and is not a benchmark."


def in_short(results: Mapping[str, DemoResult]) -> str:
    """Return one sentence with the change (BWT) of each method on the earlier tasks."""
    parts = [f"{NAMES[method]} has {_lost(result)}" for method, result in results.items()]
    return f"After the last task, {'; '.join(parts)}."


def demo_page(settings: DemoSettings, results: Mapping[str, DemoResult]) -> Page:
    """Return the demo's page: the result first, then heat maps and answers, the evidence last."""
    rows = _samples(results)
    return Page(
        title="gorp demo: four tasks, one after another",
        headline=in_short(results),
        about=ABOUT,
        runs={NAMES[method]: [result.matrix] for method, result in results.items()},
        samples=[
            Samples(
                heading=f"Questions of the first task, {TASKS[0]}, after the last, {TASKS[-1]}",
                rows=evenly(rows),
                of=len(rows),
                chosen="at even distances",
            )
        ],
        facts={
            "model": settings.model,
            "tasks": " → ".join(TASKS),
            "rows per task": f"at most {settings.train_rows} for training and {settings.eval_rows} for scoring",
            "epochs": str(settings.epochs),
            "learning rates": ", ".join(f"{NAMES[m]} {rate:g}" for m, rate in settings.learning_rates.items()),
            "seed": str(settings.seed),
        },
        commands={"To compute these numbers again:": _command(settings)},
        notes=[NOTE],
    )


def demo_picture(results: Mapping[str, DemoResult]) -> str:
    """Return both heat maps as an SVG file. The title claims that gorp keeps the scores only if BWT shows it."""
    change = {method: summary(result.matrix)["bwt"] or 0.0 for method, result in results.items()}
    kept = change["gorp"] > change["sequential_lora"] + 1.0
    title = "Ordinary LoRA forgets; gorp keeps" if kept else "Percent correct on each task, after each task"
    return picture({NAMES[method]: result.matrix for method, result in results.items()}, title=title)


def _command(settings: DemoSettings) -> str:
    """Return the command that reproduces these numbers: the seed, and each option that is not the default."""
    words = ["gorp", "demo", "--seed", str(settings.seed)]
    for name in ("model", "train_rows", "eval_rows", "epochs"):
        value = getattr(settings, name)
        if value != getattr(DemoSettings, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _lost(result: DemoResult) -> str:
    change = summary(result.matrix)["bwt"] or 0.0
    if number(abs(change)) == "0.0":
        return "lost nothing on the earlier tasks"
    return f"{'lost' if change < 0 else 'gained'} {number(abs(change))} points on the earlier tasks"


def _samples(results: Mapping[str, DemoResult]) -> list[Sample]:
    """Return the answers of both methods to the same questions."""
    methods = [NAMES[method] for method in results]
    return [
        Sample(
            question=_question(rows[0]["prompt"]),
            prompt=rows[0]["prompt"],
            expected=rows[0]["expected"],
            answers={m: Answer(row["answer"], row["correct"]) for m, row in zip(methods, rows, strict=True)},
        )
        for rows in zip(*(result.samples for result in results.values()), strict=True)
    ]


def _question(prompt: str) -> str:
    """Return the text without the first and last line: a demo prompt is an instruction, the text, and `Answer:`."""
    lines: list[Any] = prompt.split("\n")
    return "\n".join(lines[1:-1]) or prompt
