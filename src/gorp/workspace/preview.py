"""What a run would read, task by task, in two lines for the eye: how many rows, and an example."""

from gorp.data import Task, forms_of
from gorp.data.split import columns
from gorp.workspace.prepare import Session


SHOWN = 240
"""Characters of a prompt that are shown: its beginning and its end."""


def preview(session: Session) -> list[str]:
    """Two lines for each task: how many rows, and the first row to train on."""
    return [f"{task.name}: {line}" for task in session.tasks for line in _about(session, task)]


def _about(session: Session, task: Task) -> list[str]:
    if task.train is None:
        return [f"learned; {len(task.eval)} rows to be scored on"]
    prompts, completions = columns(task.train)
    dev = "" if task.dev is None else f", {len(task.dev)} kept for dev"
    lines = [f"rows: {len(prompts)} to train on, {len(task.eval)} to be scored on{dev}"]
    form = forms_of(task.train)[0]
    lead = form.lead.lstrip() if session.model.config.is_encoder_decoder else form.lead
    answer = f"{lead}{completions[0]}{form.end}"
    return [*lines, f"for example {_short(prompts[0])!r} → {_short(answer)!r}"]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-(SHOWN // 2) :]}"
