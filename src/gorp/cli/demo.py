"""`gorp demo`."""

from pathlib import Path
from typing import Annotated

import typer

from gorp.cli.command import AsJson, errors, print_json, say, start
from gorp.cli.output import check_outputs


def demo(
    as_json: AsJson = False,
    seed: Annotated[int, typer.Option(help="Seed of new adapters and of the order of rows.")] = 0,
    out: Annotated[Path, typer.Option(help="File for the HTML page.")] = Path("gorp-demo.html"),
    picture: Annotated[Path | None, typer.Option(help="File for an SVG picture of both. Default: none.")] = None,
    model: Annotated[str, typer.Option(help="The shipped model, a folder, or a hub id.")] = "gorp-tiny-t5",
    train_rows: Annotated[int, typer.Option(min=1, help="Maximum number of training rows per task.")] = 210,
    eval_rows: Annotated[int, typer.Option(min=1, help="Maximum number of scored rows per task.")] = 100,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over a task's rows.")] = 3,
) -> None:
    """Train a small model on four tasks in turn, with ordinary LoRA and with gorp; compare. Takes a few minutes."""
    with errors():
        check_outputs({"--out": out, "--picture": picture}, {"--out": ".html", "--picture": ".svg"})
        console, progress = start()
        import torch

        from gorp.demo import DemoSettings, run_demo
        from gorp.demo.page import NAMES, demo_page, demo_picture
        from gorp.report import comparison_table, matrix_table, write_page
        from gorp.report.wording import in_words
        from gorp.storage import write_atomic

        settings = DemoSettings(model=model, seed=seed, train_rows=train_rows, eval_rows=eval_rows, epochs=epochs)
        progress.say(f"model {model}, seed {seed}, {train_rows} training rows per task, {epochs} epochs")
        torch.set_num_threads(1)  # more threads do not speed up matrices this small, and slow them on a busy machine
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
            console.print(matrix_table(result.matrix, title=f"{NAMES[method]}: percent correct"))
        runs = {NAMES[method]: [result.matrix] for method, result in results.items()}
        console.print(comparison_table(runs, title=f"side by side, seed {seed}"))
        typer.echo("")
        for method, result in results.items():
            say(f"{NAMES[method]}: {in_words(result.matrix)}")
