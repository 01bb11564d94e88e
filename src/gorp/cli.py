"""The command line: parses, calls, prints. Results go to standard output, everything else to the error stream.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration; 130 interrupted (Ctrl-C) and 143 terminated (SIGTERM),
after which the same command goes on.
"""

import errno
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from gorp.disk import disk_message
from gorp.errors import ConfigError, GorpError
from gorp.printable import json_printable, printable
from gorp.termination import EXIT_CODE as TERMINATED
from gorp.termination import Terminated, sigterm_raises


app = typer.Typer(
    help="Teach a language model one task after another, and prove that it still knows the earlier ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


def _folder(text: str | Path) -> Path:
    """A path; an empty name, as a variable has that was never set, is not the current folder."""
    if not str(text).strip():
        raise typer.BadParameter("is empty; wanted a folder. Is a variable not set?")
    return Path(text)


Place = Annotated[
    Path,
    typer.Argument(
        metavar="WORKSPACE", parser=_folder, help="The workspace, or its YAML; the current folder by default."
    ),
]


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Run `gorp COMMAND --help` for the options of a command."""
    if version:
        import gorp

        typer.echo(gorp.__version__)
        raise typer.Exit


@app.command()
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
    with _errors():
        for file in filter(None, (out, picture)):
            _check_file(file)
        console, progress = _start()
        import torch

        from gorp.demo import DemoSettings, run_demo
        from gorp.demo_page import NAMES, demo_page, demo_picture
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
            _print_json({method: result.to_dict() for method, result in results.items()})
            return
        for method, result in results.items():
            console.print(matrix_table(result.matrix, title=f"{NAMES[method]}: percent right"))
        runs = {NAMES[method]: [result.matrix] for method, result in results.items()}
        console.print(comparison_table(runs, title=f"side by side, seed {seed}"))
        typer.echo("")
        for method, result in results.items():
            _say(f"{NAMES[method]}: {in_words(result.matrix)}")


@app.command()
def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.yaml", exists=True, dir_okay=False, help="What to train: see docs/getting-started.md."
        ),
    ],
    workspace: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=_folder,
            help="The folder for versions and scores. Default: beside the YAML, named as it without .yaml.",
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin the unfinished task anew, instead of going on with it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show what would be trained, write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train the tasks that are pending, and score all tasks after each. Interrupted runs go on where they were."""
    with _errors(interrupted=" The same command goes on where it was."):
        console, progress = _start()
        from gorp.workspace import load_config, plan, run_sequence, status

        settings = load_config(config)
        folder = config.with_suffix("") if workspace is None else workspace
        if dry_run:
            pending, treatments, total = plan(settings, folder, restart=restart, progress=progress)
            progress.treatments(treatments, total)
            trainable = sum(item.trainable for item in treatments)
            result = {"pending": pending, "trainable": trainable, "parameters": total}
            _print_json(result) if as_json else _say(f"pending: {', '.join(pending) or 'nothing'}")
            return
        run_sequence(settings, folder, restart=restart, progress=progress)
        state = status(folder)
        if as_json:
            _print_json(state)
            return
        from gorp.console import show_verdict

        seen = console.is_terminal and progress.console.is_terminal  # the lines about the tasks stand just above
        show_verdict(console, state, tasks=not seen)
        _say(f"`gorp status {shlex.quote(str(folder))}` shows the matrix and the versions")


@app.command()
def status(
    workspace: Place = Path("."),
    explain: Annotated[
        bool, typer.Option("--explain", help="Also what the numbers mean, notes on the data, and all versions.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what the model still knows of each task; show the accuracy matrix, the versions, and what is pending."""
    with _errors():
        from gorp.console import console, show_status
        from gorp.workspace.place import place
        from gorp.workspace.status import status as read_status

        folder, config = place(workspace)
        state = read_status(folder, config=config)
        _print_json(state) if as_json else show_status(console(), state, explain=explain)


@app.command("eval")
def evaluate(
    workspace: Place = Path("."),
    version: Annotated[str | None, typer.Option(help="For example v2; the current one by default.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task; all by default.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model. Read it first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score a version again, as the YAML is now, and keep the scores."""
    with _errors():
        from gorp.workspace.place import place

        folder, source = place(workspace)
        console, progress = _start()
        from gorp.console import plain_table
        from gorp.workspace import evaluate_version

        result = evaluate_version(
            folder,
            source=source,
            version=version,
            task=task,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
        if as_json:
            _print_json(result)
            return
        lines = [[n, f"{c['score']:.1f}", str(c["rows"]), c["metric"]] for n, c in result["scores"].items()]
        console.print(plain_table(result["version"], ["task", "percent right", "rows", "metric"], lines))


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the methods that `method.name` can be."""
    with _errors():
        from gorp.catalogue import CATALOGUE
        from gorp.console import console, plain_table

        if as_json:
            _print_json({name: about._asdict() for name, about in CATALOGUE.items()})
            return
        lines = [
            [name, about.title, about.keeps, "; ".join(about.asks()), about.paper] for name, about in CATALOGUE.items()
        ]
        console().print(plain_table("", ["name", "what it does", "keeps between tasks", "asks", "paper"], lines))


@app.command()
def estimate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The YAML that `gorp train` takes.")],
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="Of a GPU that is not here: 10^12 operations a second it reaches.")
    ] = None,
    gbps: Annotated[float | None, typer.Option(min=0.001, help="Its memory's bandwidth, 10^9 bytes a second.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict memory, time and what is kept, from shapes alone; measures this machine for two seconds."""
    with _errors():
        console, _ = _start()
        from gorp.console import plain_table
        from gorp.estimate import device_for, headings_of, lines_of, predict
        from gorp.workspace import load_config

        if (tflops is None) != (gbps is None):
            raise ConfigError("--tflops and --gbps go together: a device that is not here needs both.")
        settings = load_config(config)
        device = device_for(settings, tflops=tflops, gbps=gbps)
        estimates = predict(settings, device)
        if as_json:
            _print_json({"device": device.name, **{n: e.to_dict() for n, e in estimates.items()}})
            return
        console.print(plain_table(f"on {device.name}", headings_of(estimates), lines_of(estimates)))


def _start() -> tuple[Any, Any]:
    """The console for results, and the progress for everything else; libraries are told to be quiet."""
    from rich.console import Console

    stderr = Console(stderr=True)
    with stderr.status("loading torch and transformers") if stderr.is_terminal else nullcontext():
        import datasets
        from transformers.utils import logging

        from gorp.console import console
        from gorp.live import progress_on

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    return console(), progress_on(console(stderr=True))


@contextmanager
def _errors(*, interrupted: str = "") -> Iterator[None]:
    """Errors meant for a user become a message and an exit code; others are ours and keep their traceback."""
    try:
        with sigterm_raises():
            yield
    except GorpError as error:
        _say(f"gorp: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    except OSError as error:
        if error.errno in (None, errno.EPIPE) or not error.filename:  # of a library; of a reader that left; ours
            raise
        _say(f"gorp: {disk_message(error, Path(os.fsdecode(error.filename)))}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as stop:  # it may say what was saved
        saved = f" {stop}" if str(stop) else ""
        terminated = isinstance(stop, Terminated)
        _say(f"gorp: {'terminated' if terminated else 'interrupted'}.{saved}{interrupted}", err=True)
        raise typer.Exit(TERMINATED if terminated else 130) from None


def _check_file(path: Path) -> None:
    """Refuse, before the training, a file that could not be written after it."""
    if path.is_dir():
        raise ConfigError(f"{path}: a folder; wanted the name of a file, for example {path / 'gorp-demo.html'}.")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"{path}: {there} is no folder that can be written to. Give another place.")


def _say(line: str, *, err: bool = False) -> None:
    """Print a line; names and text of models and data in it command no terminal."""
    typer.echo(printable(line), err=err)


def _print_json(value: Any) -> None:
    sys.stdout.write(json_printable(json.dumps(value, ensure_ascii=False, allow_nan=False)) + "\n")


if __name__ == "__main__":
    app()
