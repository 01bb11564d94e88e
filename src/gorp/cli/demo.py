"""`gorp demo`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from gorp.cli.command import AsJson, errors, print_json, say, start
from gorp.errors import ConfigError


def demo(
    as_json: AsJson = False,
    seed: Annotated[int, typer.Option(help="Decides fresh adapters and the order of rows.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("gorp-demo.html"),
    picture: Annotated[Path | None, typer.Option(help="Where the picture of both goes as SVG, if wanted.")] = None,
    model: Annotated[str, typer.Option(help="The shipped model, a folder, or a hub id.")] = "gorp-tiny-t5",
    train_rows: Annotated[int, typer.Option(min=1, help="Rows of each task to train on, at most.")] = 210,
    eval_rows: Annotated[int, typer.Option(min=1, help="Rows of each task to score, at most.")] = 100,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over a task's rows.")] = 3,
) -> None:
    """Teach a small model four tasks in turn, by ordinary LoRA and by gorp, and compare. Takes a few minutes."""
    with errors():
        for file in filter(None, (out, picture)):
            check_file(file)
        console, progress = start()
        import torch

        from gorp.demo import DemoSettings, run_demo
        from gorp.demo.page import NAMES, demo_page, demo_picture
        from gorp.report import comparison_table, matrix_table, write_page
        from gorp.report.wording import in_words
        from gorp.storage import write_atomic

        settings = DemoSettings(model=model, seed=seed, train_rows=train_rows, eval_rows=eval_rows, epochs=epochs)
        progress.say(f"seed {seed}, model {model}, {train_rows} rows a task to train on, {epochs} epochs")
        torch.set_num_threads(1)  # matrices this small gain nothing from more threads, and lose much on a busy machine
        results = run_demo(settings, progress=progress)
        write_page(demo_page(settings, results), out)
        progress.say(f"wrote {out}")
        if picture is not None:
            write_atomic(picture, demo_picture(results).encode())
            progress.say(f"wrote {picture}")
        if as_json:
            print_json({method: result.to_dict() for method, result in results.items()})
            return
        for method, result in results.items():
            console.print(matrix_table(result.matrix, title=f"{NAMES[method]}: percent right"))
        runs = {NAMES[method]: [result.matrix] for method, result in results.items()}
        console.print(comparison_table(runs, title=f"side by side, seed {seed}"))
        typer.echo("")
        for method, result in results.items():
            say(f"{NAMES[method]}: {in_words(result.matrix)}")


def check_file(path: Path) -> None:
    """Refuse, before the training, a file that could not be written after it."""
    if path.is_dir():
        raise ConfigError(f"{path}: a folder; wanted the name of a file, for example {path / 'gorp-demo.html'}.")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"{path}: {there} is no folder that can be written to. Give another place.")
