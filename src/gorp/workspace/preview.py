"""For the dry run: the number of rows of each task and an example row."""

from gorp.data import Task, forms_of
from gorp.data.split import columns
from gorp.workspace.prepare import Session


SHOWN = 240
"""Characters of a prompt that are shown, half from its start and half from its end."""


def preview(session: Session) -> list[str]:
    """Return two lines for each task: the number of rows, and the first training row."""
    return [f"{task.name}: {line}" for task in session.tasks for line in _about(session, task)]


def _about(session: Session, task: Task) -> list[str]:
    if task.train is None:
        return [f"already learned; {len(task.eval)} eval rows"]
    prompts, completions = columns(task.train)
    dev = "" if task.dev is None else f", {len(task.dev)} dev rows"
    lines = [f"{len(prompts)} training rows, {len(task.eval)} eval rows{dev}"]
    form = forms_of(task.train)[0]
    lead = form.lead.lstrip() if session.model.config.is_encoder_decoder else form.lead
    answer = f"{lead}{completions[0]}{form.end}"
    return [*lines, f"first training row: {_short(prompts[0])!r} → {_short(answer)!r}"]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-(SHOWN // 2) :]}"
