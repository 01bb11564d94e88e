"""`gorp report`."""

from pathlib import Path
from typing import Annotated

import typer

from gorp.cli.command import AsJson, Place, errors, print_json, say
from gorp.cli.output import check_outputs


ENDINGS = {"--out": ".html", "--markdown": ".md", "--csv": ".csv"}


def report(
    workspace: Place = Path("."),
    out: Annotated[Path, typer.Option(help="File for the HTML page.")] = Path("report.html"),
    markdown: Annotated[Path | None, typer.Option(help="File for the same as Markdown. Default: none.")] = None,
    csv: Annotated[Path | None, typer.Option(help="File for scores and verdicts as CSV. Default: none.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one page about a workspace: the verdict, all scores, answers that changed, capacity, costs, evidence."""
    with errors():
        from gorp.permissions import private_mode
        from gorp.report import page_markdown, scores_csv, write_page
        from gorp.storage import write_atomic
        from gorp.workspace.overview import overview
        from gorp.workspace.page import judged, matrix_of, workspace_page
        from gorp.workspace.place import place

        folder, source = place(workspace)
        check_outputs({"--out": out, "--markdown": markdown, "--csv": csv}, ENDINGS)
        facts = overview(folder, source=source)
        page = workspace_page(facts, folder.resolve().name)
        write_page(page, out, mode=private_mode(out))
        if markdown is not None:
            write_atomic(markdown, page_markdown(page).encode(), mode=private_mode(markdown))
        if csv is not None:
            write_atomic(csv, scores_csv(matrix_of(facts), judged(facts)).encode(), mode=private_mode(csv))
        if as_json:
            print_json(facts)
            return
        verdict = f"{page.judged.verdict.upper()}: " if page.judged else ""
        say(f"{verdict}{page.headline}")
        for file in filter(None, (out, markdown, csv)):
            say(f"wrote {file}")
