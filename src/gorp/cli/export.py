"""`gorp export`."""

from pathlib import Path
from typing import Annotated

import typer

from gorp.cli.command import AsJson, Base, TrustRemoteCode, errors, folder, print_json, say, start


def export(
    workspace: Annotated[
        Path, typer.Argument(metavar="WORKSPACE", parser=folder, help="The workspace folder, or its YAML.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=folder, help="The folder to write; new or empty.")],
    to: Annotated[str, typer.Option(help="merged: a Hugging Face model folder. lora: a PEFT adapter.")] = "merged",
    version: Annotated[
        str | None, typer.Option(help="Version to export, for example v2. Default: the current version.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32 or bfloat16. Default: the model's dtype; float32 for an adapter."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Rank of the adapter: 1, 8, 16, 32, 64, 128, 256, 320 or 512. Default: chosen and said."),
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="An adapter for each version up to this one: OUT/v1, OUT/v2, ...")
    ] = False,
    base: Base = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in OUT.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and say what would be written; write nothing.")
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Also upload the folder to the Hugging Face hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository on the hub private.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Write a version as a folder for transformers, vLLM or llama.cpp, check it, and write its model card."""
    with errors(interrupted=" Nothing was exported."):
        from gorp.workspace.place import place

        root, source = place(workspace)
        _, progress = start()
        from gorp.export.wording import sentences, size
        from gorp.workspace import Workspace
        from gorp.workspace.export import export_version

        store = Workspace(root)
        result = export_version(
            store.current() if version is None else store.version(version),
            out,
            to=to,
            dtype=dtype,
            rank=rank,
            each=each,
            base=base,
            force=force,
            dry_run=dry_run,
            push_to_hub=push_to_hub,
            private=private,
            source=source,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
        if as_json:
            print_json(result)
            return
        for name, facts in result.get("versions", {result["version"]: result}).items():
            if dry_run:
                chosen = f", rank {facts['rank']} ({facts['why'] or 'as given'})" if "rank" in facts else ""
                where = out / name if each else out
                say(f"would write {name} to {where}: {to}, {result['dtype']}{chosen}, {size(facts['bytes'])}")
                continue
            for line in sentences({**result, **facts} if each else facts):
                say(f"{name}: {line}")
        if not dry_run:
            total = sum(item["bytes"] for item in result["files"].values())
            say(f"written to {out}: {len(result['files']) + 1} files, {size(total)}; its README.md is the model card")
        if "commit" in result:
            say(f"uploaded: {result['commit']}")
