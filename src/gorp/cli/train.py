"""`gorp train` and, before it, `gorp estimate`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from gorp.cli.command import AsJson, errors, folder, print_json, say, start
from gorp.errors import ConfigError


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
            parser=folder,
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
    with errors(interrupted=" The same command goes on where it was."):
        console, progress = start()
        from gorp.workspace import load_config, plan, run_sequence, status

        settings = load_config(config)
        folder = config.with_suffix("") if workspace is None else workspace
        if dry_run:
            pending, treatments, total = plan(settings, folder, restart=restart, progress=progress)
            progress.treatments(treatments, total)
            trainable = sum(item.trainable for item in treatments)
            result = {"pending": pending, "trainable": trainable, "parameters": total}
            print_json(result) if as_json else say(f"pending: {', '.join(pending) or 'nothing'}")
            return
        run_sequence(settings, folder, restart=restart, progress=progress)
        state = status(folder)
        if as_json:
            print_json(state)
            return
        from gorp.cli.console import show_verdict

        seen = console.is_terminal and progress.console.is_terminal  # the lines about the tasks stand just above
        show_verdict(console, state, tasks=not seen)
        say(f"`gorp status {shlex.quote(str(folder))}` shows the matrix and the versions")


def estimate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The YAML that `gorp train` takes.")],
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="Of a GPU that is not here: 10^12 operations a second it reaches.")
    ] = None,
    gbps: Annotated[float | None, typer.Option(min=0.001, help="Its memory's bandwidth, 10^9 bytes a second.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict memory, time and what is kept, from shapes alone; measures this machine for two seconds."""
    with errors():
        console, _ = start()
        from gorp.cli.console import plain_table
        from gorp.estimate import device_for, headings_of, lines_of, predict
        from gorp.workspace import load_config

        if (tflops is None) != (gbps is None):
            raise ConfigError("--tflops and --gbps go together: a device that is not here needs both.")
        settings = load_config(config)
        device = device_for(settings, tflops=tflops, gbps=gbps)
        estimates = predict(settings, device)
        if as_json:
            print_json({"device": device.name, **{n: e.to_dict() for n, e in estimates.items()}})
            return
        console.print(plain_table(f"on {device.name}", headings_of(estimates), lines_of(estimates)))
