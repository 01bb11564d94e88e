"""The demo's results for people: the sentences, the page, the picture."""

import shlex
from collections.abc import Mapping
from typing import Any

from gorp.demo import DemoResult, DemoSettings
from gorp.demo.run import TASKS
from gorp.evaluation import summary
from gorp.report import Answer, Page, Sample, picture
from gorp.report.wording import number


NAMES = {"sequential_lora": "ordinary LoRA fine-tuning", "gorp": "gorp"}
"""What the two methods are called where people read."""

ABOUT = (
    "gorp fine-tunes a language model on one task after another, without the data of the earlier tasks. It remembers "
    "the main directions of each layer's inputs in the earlier tasks, and a new task changes what a layer does only "
    "outside them."
)

NOTE = "One seed and a small model: this shows what the two methods do, not how much better one of them is."


def in_short(results: Mapping[str, DemoResult]) -> str:
    """The result in one sentence: what each method lost on the earlier tasks."""
    parts = [f"{NAMES[method]} has {_lost(result)}" for method, result in results.items()]
    return f"After the last task, {'; '.join(parts)}."


def demo_page(settings: DemoSettings, results: Mapping[str, DemoResult]) -> Page:
    """The page: the result first, then the heat maps and answers, the configuration last."""
    return Page(
        title="gorp demo: four tasks, one after another",
        headline=in_short(results),
        about=ABOUT,
        runs={NAMES[method]: [result.matrix] for method, result in results.items()},
        facts={
            "model": settings.model,
            "tasks": " → ".join(TASKS),
            "rows a task": f"{settings.train_rows} to train on, {settings.eval_rows} scored, at most",
            "epochs": str(settings.epochs),
            "learning rates": ", ".join(f"{NAMES[m]} {rate:g}" for m, rate in settings.learning_rates.items()),
            "seed": str(settings.seed),
            "command": _command(settings),
        },
        notes=[NOTE],
        samples={f"Questions of the first task, {TASKS[0]}, after the last, {TASKS[-1]}": _samples(results)},
    )


def demo_picture(results: Mapping[str, DemoResult]) -> str:
    """Both heat maps as an SVG file; its title says what is to be seen, if it is."""
    change = {method: summary(result.matrix)["bwt"] or 0.0 for method, result in results.items()}
    kept = change["gorp"] > change["sequential_lora"] + 1.0
    title = "Ordinary LoRA forgets; gorp keeps" if kept else "Percent right on each task after each task"
    return picture({NAMES[method]: result.matrix for method, result in results.items()}, title=title)


def _command(settings: DemoSettings) -> str:
    """What makes these numbers again: the seed, and each option of the command that is not its default."""
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
    """The answers of both methods to the same questions."""
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
    """The text itself: the demo's prompts are an instruction, the text, and `Answer:`, each on its own line."""
    lines: list[Any] = prompt.split("\n")
    return "\n".join(lines[1:-1]) or prompt
