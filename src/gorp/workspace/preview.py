"""What a run would read, task by task, in a few lines for the eye: rows, prompts that are too long, an example."""

from dataclasses import replace

from gorp.data import Form, Task, encode_prompts, forms_of
from gorp.data.split import columns
from gorp.workspace.prepare import Session


SHOWN = 240
"""Characters of a prompt that are shown: its beginning and its end."""

UNLIMITED = 2**31
"""Tokens of a prompt that no prompt has."""


def preview(session: Session) -> list[str]:
    """Two lines or three for each task: how many rows, what is cut, and the first row to train on."""
    return [f"{task.name}: {line}" for task in session.tasks for line in _about(session, task)]


def _about(session: Session, task: Task) -> list[str]:
    if task.train is None:
        return [f"learned; {len(task.eval)} rows to be scored on"]
    prompts, completions = columns(task.train)
    dev = "" if task.dev is None else f", {len(task.dev)} kept for dev"
    lines = [f"rows: {len(prompts)} to train on, {len(task.eval)} to be scored on{dev}"]
    limit = session.config.encoding.max_prompt_tokens
    for part, rows in (("train", task.train), ("eval", task.eval)):
        texts = columns(rows)[0]
        if long := sum(length > limit for length in _lengths(session, texts, forms_of(rows))):
            lost = session.config.encoding.truncation
            lines.append(f"{long} of {len(texts)} prompts of {part} exceed {limit} tokens and lose their {lost}")
    form = forms_of(task.train)[0]
    answer = f"{form.lead}{completions[0]}{form.end}"
    return [*lines, f"for example {_short(prompts[0])!r} → {_short(answer)!r}"]


def _lengths(session: Session, texts: list[str], forms: list[Form]) -> list[int]:
    encoded = encode_prompts(
        texts,
        session.tokenizer,
        encoder_decoder=bool(session.model.config.is_encoder_decoder),
        encoding=replace(session.config.encoding, max_prompt_tokens=UNLIMITED),
        forms=forms,
    )
    return [len(ids) for ids in encoded]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-(SHOWN // 2) :]}"
