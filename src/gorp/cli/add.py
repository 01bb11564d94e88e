"""`gorp init`, `gorp add` and `gorp validate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gorp.cli.command import AsJson, errors, folder, print_json, say, start


DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and write nothing.")]


def init(
    model: Annotated[str, typer.Argument(help="A folder, a hub id (not looked up), or gorp-tiny-t5.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Files of rows, one task each. `x_test`, `x_eval` or `x_dev` has the eval rows of `x`."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE.yaml", parser=folder, help="The YAML to write.")] = Path(
        "bot.yaml"
    ),
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented YAML for a model and files of rows. The formats of the rows are seen from their columns."""
    with errors():
        console, _ = start()
        from gorp.cli.console import plain_table
        from gorp.workspace import init_config

        result = init_config(model, files or [], out, dry_run=dry_run)
        if as_json:
            print_json(result)
            return
        if dry_run:
            say(result["text"].rstrip("\n"))
            return
        if result["tasks"]:
            lines = [[task["name"], task["format"], task["train"], task["eval"] or "-"] for task in result["tasks"]]
            console.print(plain_table("", ["task", "format", "train", "eval"], lines))
        then = f"`gorp validate {result['config']}` checks its rows" if result["tasks"] else "`gorp add` adds a task"
        say(f"wrote {result['config']}; {then}")


def add(
    name: Annotated[str, typer.Argument(help="Name of the new task.")],
    file: Annotated[str, typer.Argument(help="Its training rows: a file, a folder, or the id of a hub data set.")],
    evaluation: Annotated[
        str | None, typer.Option("--eval", metavar="FILE", help="Its eval rows. Default: split off the training rows.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", parser=folder, help="Default: the YAML in the current folder.")
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a hub data set or folder.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a hub data set or folder to train on.")] = None,
    eval_split: Annotated[str | None, typer.Option(help="Split of a hub data set or folder to score on.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Check a task's rows, alone and against all other tasks, and append the task to the YAML."""
    with errors():
        console, progress = start()
        from gorp.cli.rows import show_rows
        from gorp.workspace import add_task
        from gorp.workspace.add import find_config

        result = add_task(
            config or find_config(Path(".")),
            name,
            file,
            evaluation=evaluation,
            subset=subset,
            split=split,
            eval_split=eval_split,
            dry_run=dry_run,
            progress=progress,
        )
        if as_json:
            print_json(result)
        else:
            show_rows(console, result)
            if result["written"]:
                say(f"{result['config']}: added  - {result['entry']}")
            elif not result["problems"]:
                say(f"{result['config']}: would get  - {result['entry']}")
        _refuse(result, f"{name} was not added to {result['config']}")


def validate(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG.yaml", parser=folder)] = None,
    workspace: Annotated[
        Path | None, typer.Option(metavar="FOLDER", parser=folder, help="As for `gorp train`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a YAML and the rows of its pending tasks, and list all problems. Nothing is written.

    The dry run of `gorp train` stops at the first problem and does not compare the tasks. This command reads rows one
    by one, looks for copies, leaks and conflicts, and then makes that dry run if the rows are small enough to load.
    """
    with errors():
        console, progress = start()
        from gorp.cli.rows import show_rows
        from gorp.workspace import validate as check
        from gorp.workspace.add import find_config

        result = check(config or find_config(Path(".")), workspace, progress=progress)
        if as_json:
            print_json(result)
        else:
            show_rows(console, result, example=False)
            if not result["problems"]:
                pending = ", ".join(result.get("pending", result["tasks"])) or "none"
                say(f"{result['config']}: no problems; pending tasks: {pending}")
        count = len(result["problems"])
        _refuse(result, f"{result['config']} has {count} problem{'s' * (count != 1)}")


def _refuse(result: dict[str, Any], sentence: str) -> None:
    """End with the exit code of the problems, if there are any."""
    if result["problems"]:
        say(f"gorp: {sentence}", err=True)
        raise typer.Exit(2 if result["invalid"] else 1)
