"""`gorp status` and `gorp methods`: commands that only look, and load no heavy library."""

from pathlib import Path
from typing import Annotated

import typer

from gorp.cli.command import AsJson, Place, errors, print_json


def status(
    workspace: Place = Path("."),
    explain: Annotated[
        bool, typer.Option("--explain", help="Also what the numbers mean, notes on the data, and all versions.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what the model still knows of each task; show the accuracy matrix, the versions, and what is pending."""
    with errors():
        from gorp.cli.console import console, show_status
        from gorp.workspace.place import place
        from gorp.workspace.status import status as read_status

        folder, config = place(workspace)
        state = read_status(folder, config=config)
        print_json(state) if as_json else show_status(console(), state, explain=explain)


def methods(as_json: AsJson = False) -> None:
    """List the methods that `method.name` can be."""
    with errors():
        from gorp.cli.catalogue import CATALOGUE
        from gorp.cli.console import console, plain_table

        if as_json:
            print_json({name: about._asdict() for name, about in CATALOGUE.items()})
            return
        lines = [
            [name, about.title, about.keeps, "; ".join(about.asks()), about.paper] for name, about in CATALOGUE.items()
        ]
        console().print(plain_table("", ["name", "what it does", "keeps between tasks", "asks", "paper"], lines))
