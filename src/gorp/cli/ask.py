"""`gorp ask`."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gorp.cli.command import AsJson, Base, Place, TrustRemoteCode, errors, print_json, say, start
from gorp.errors import ConfigError, GorpError


if TYPE_CHECKING:
    from gorp.workspace.ask import Answer, Answerer


def ask(
    workspace: Place = Path("."),
    prompt: Annotated[
        str | None,
        typer.Argument(help="The question, or a row of the task's file. Default: stdin; on a terminal, one a line."),
    ] = None,
    version: Annotated[str | None, typer.Option(help="For example v2. Default: the current version.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Ask in the form of this task. Default: the newest one of the version.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Most tokens of an answer. Default: as in scoring.")
    ] = None,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Ask a version a question, in the form in which a task was trained, and print its answer."""
    with errors():
        from gorp.workspace.place import place

        root, source = place(workspace)
        live = prompt is None and _is_terminal()
        if prompt is None and not live:
            prompt = sys.stdin.read().removesuffix("\n")
        if prompt is not None and not prompt.strip():
            raise ConfigError("the prompt is empty. Give it after the workspace, or on stdin.")
        _, progress = start()
        from gorp.workspace.ask import Answerer

        answerer = Answerer.load(
            root,
            version=version,
            task=task,
            base=base,
            source=source,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
        for note in answerer.layout.notes:
            say(note, err=True)

        def answer(question: Any) -> "Answer":
            with _waiting():
                found = answerer(question, max_new_tokens=max_new_tokens)
            _show(answerer, found, as_json=as_json)
            return found

        if prompt is not None:
            answer(answerer.layout.read(prompt))
        else:
            _converse(answerer, answer)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _converse(answerer: "Answerer", answer: "Callable[[Any], Answer]") -> None:
    """Answer each line of the terminal until Ctrl-D; in a chat, with the turns before it."""
    chat = answerer.layout.chat
    kept = "the turns so far are kept" if chat else "each line is a prompt of its own"
    say(f"{answerer.version}, in the form of {answerer.task}; {kept}; Ctrl-D ends", err=True)
    turns: list[Mapping[str, Any]] = []
    for line in _lines():
        question: Any = answerer.layout.read(line)
        if chat and question is line:
            question = answerer.layout.turns(line, turns)
        try:
            found = answer(question)
        except GorpError as error:  # of this line; the conversation goes on
            say(f"gorp: {error}", err=True)
            continue
        if chat and isinstance(question, list):
            turns = [*question, {"role": "assistant", "content": found.text}]


def _lines() -> Iterator[str]:
    """Yield the lines of the terminal that are not blank, without their ends."""
    import readline  # noqa: F401  lets `input` edit the line

    while True:
        typer.echo("> ", nl=False, err=True)
        try:
            line = input()
        except EOFError:
            typer.echo(err=True)
            return
        if line.strip():
            yield line


def _show(answerer: "Answerer", answer: "Answer", *, as_json: bool) -> None:
    """Print an answer on stdout, and on stderr that its prompt was cut."""
    if answer.is_cut:
        part = "middle" if answerer.encoding.truncation == "middle" else "end"
        say(
            f"the prompt has {answer.prompt_tokens} tokens, and the task's prompts at most {answer.max_prompt_tokens} "
            f"(encoding.max_prompt_tokens): the model did not read its {part}, as in training",
            err=True,
        )
    if not as_json:
        say(answer.text)
        return
    facts = {"prompt_tokens": answer.prompt_tokens, "max_prompt_tokens": answer.max_prompt_tokens}
    texts = {"prompt": answer.prompt, "answer": answer.text}
    print_json({"version": answerer.version, "task": answerer.task, **texts, **facts, "cut": answer.is_cut})


@contextmanager
def _waiting() -> Iterator[None]:
    """Show a spinner on a terminal while the model answers."""
    from rich.console import Console

    stderr = Console(stderr=True)
    with stderr.status("answering") if stderr.is_terminal else nullcontext():
        yield
