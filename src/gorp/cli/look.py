"""`gorp status`, which needs neither torch nor transformers, and `gorp methods`, which imports every method."""

from pathlib import Path
from typing import Annotated

import typer

from gorp.cli.command import AsJson, Place, errors, loading, print_json


ABOUT = ("title", "keeps", "paper", "joint", "needs_num_tasks", "needs_task_id", "stores_data", "mergeable")
"""Attributes of a method's class that `gorp methods --json` prints."""


def status(
    workspace: Place = Path("."),
    explain: Annotated[
        bool, typer.Option("--explain", help="Also explain every number and show data notes and all versions.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what the model still knows of each task, all scores, the versions, and the pending tasks.

    WORKSPACE may also be a folder of gorp.Protection.
    """
    with errors():
        from gorp.cli.console import console
        from gorp.cli.protected import show_protection
        from gorp.cli.status_tables import show_status
        from gorp.workspace.place import place
        from gorp.workspace.status import status as read_status

        folder, config = place(workspace)
        state = read_status(folder, config=config)
        if as_json:
            print_json(state)
            return
        show = show_protection if state["made_by"] == "protection" else show_status
        show(console(), state, explain=explain)


def methods(as_json: AsJson = False) -> None:
    """List the methods that `method.name` in the YAML can select."""
    with errors():
        with loading():
            from gorp.methods import METHODS
        from gorp.cli.console import console, plain_table

        if as_json:
            print_json({name: {key: getattr(method, key) for key in ABOUT} for name, method in METHODS.items()})
            return
        lines = [[name, m.title, m.keeps, "; ".join(m.requirements()), m.paper] for name, m in METHODS.items()]
        console().print(plain_table("", ["name", "what it does", "keeps between tasks", "requires", "paper"], lines))
