"""`gorp train` and `gorp estimate`."""

import shlex
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from gorp.cli.command import AsJson, errors, folder, print_json, say, start
from gorp.cli.gate import EXIT
from gorp.errors import ConfigError


def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.yaml",
            exists=True,
            help="Model, method and list of tasks: see docs/getting-started.md.",
        ),
    ],
    workspace: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=folder,
            help="Folder for versions and scores. Default: the path of the YAML without .yaml.",
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Train an unfinished task from its start, and held tasks again."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show what would be trained; write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train the pending tasks in order, score all tasks after each, and judge each new version as `gorp gate` does.

    A version that lost on an earlier task is held: it is kept, the version before it stays the current one, and
    training stops (exit 3). The same command continues an interrupted run, and after a hold it trains the next task.
    """
    with errors(interrupted=" Run the same command to continue."):
        if config.is_dir():
            _refuse_folder(config)
        console, progress = start()
        from gorp.workspace import load_config, plan, run_sequence, status

        settings = load_config(config)
        folder = config.with_suffix("") if workspace is None else workspace
        if dry_run:
            pending, treatments, total = plan(settings, folder, restart=restart, progress=progress)
            progress.treatments(treatments, total)
            trainable = sum(item.trainable for item in treatments)
            result = {"pending": pending, "trainable": trainable, "parameters": total}
            print_json(result) if as_json else say(f"pending tasks: {', '.join(pending) or 'none'}")
            return
        held = run_sequence(settings, folder, restart=restart, progress=progress).held
        state = status(folder)
        if as_json:
            print_json(state)
        else:
            from gorp.cli.status_tables import show_verdict

            already_shown = console.is_terminal and progress.console.is_terminal  # by `progress`, just above
            show_verdict(console, state, tasks=not already_shown)
            say(f"`gorp status {shlex.quote(str(folder))}` shows all scores and versions")
        if held is not None:
            raise typer.Exit(EXIT[held["verdict"]])


def _refuse_folder(path: Path) -> NoReturn:
    """Raise the error for a folder in the place of the YAML."""
    from gorp.workspace.store import Workspace

    store = Workspace(path)
    if store.exists():
        store.current().check_trained_by_gorp("gorp train")
    raise ConfigError(f"{path}: this is a folder; wanted the YAML with the model, the method and the list of tasks.")


def estimate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The same YAML as for `gorp train`.")],
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="Estimate for another GPU: its attainable speed, in 10^12 operations per second."),
    ] = None,
    gbps: Annotated[
        float | None, typer.Option(min=0.001, help="The other GPU's memory bandwidth, in 10^9 bytes per second.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict memory, time and disk space from the model's shapes; takes two seconds to measure this machine."""
    with errors():
        console, _ = start()
        from gorp.cli.console import plain_table
        from gorp.estimate import device_for, headings_of, lines_of, predict
        from gorp.workspace import load_config

        if (tflops is None) != (gbps is None):
            raise ConfigError("only one of --tflops and --gbps is given; an estimate for another GPU needs both.")
        settings = load_config(config)
        device = device_for(settings, tflops=tflops, gbps=gbps)
        estimates = predict(settings, device)
        if as_json:
            print_json({"device": device.name, **{n: e.to_dict() for n, e in estimates.items()}})
            return
        console.print(plain_table(f"on {device.name}", headings_of(estimates), lines_of(estimates)))
