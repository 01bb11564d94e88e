"""Read the turns of a chat, in OpenAI's or ShareGPT's format, as `role` and `content`."""

from typing import Any

from gorp.data.rows import Row, kind, names, text_column
from gorp.errors import DataError


SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), "assistant"),
    "system": "system",
}
"""Speaker in ShareGPT's format -> the role in chat templates."""

FUNCTIONS = ("tool", "function", "function_call", "tool_call", "tool_response", "observation")
"""ShareGPT's speakers for function calls and their results. With `role`, the chat template decides if it supports them.
"""

MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Columns with media that the turns refer to. gorp cannot pass them to a model."""

SWITCHES = ("weight", "train", "loss")
"""Keys that say whether a turn counts in the loss."""


def read_turns(row: Row, column: str) -> list[dict[str, Any]]:
    """Return the turns in `column`, each with `role` and `content`; the last one is the answer.

    A turn is `{"role": ..., "content": ...}`, whose other keys are kept for the chat template, or ShareGPT's
    `{"from": "human" or "gpt" or "system", "value": ...}`. Text in a column `system` becomes the first turn.

    Raises:
        DataError: If the column is not a list of turns, there are two different system texts, the row has function
            calls, images or other media, or the answer is excluded from the loss.
    """
    turns = row.values.get(column)
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"{row.place}: wanted a non-empty list in the column `{column}`; columns found: {names(row.values)}."
        )
    for name in ("tools", "functions", *MEDIA):
        if row.values.get(name):
            raise DataError(
                f"{row.place}: the row has `{name}` and `{column}`; function calls, images, audio and video are not "
                f"supported. Remove the row, or the column if the answer does not depend on it."
            )
    read = [_turn(row, column, number, turn) for number, turn in enumerate(turns, 1)]
    _check_answer(row, column, turns[-1])
    system = row.values.get("system")
    if isinstance(system, str) and system.strip():
        if read[0]["role"] != "system":
            return [{"role": "system", "content": system}, *read]
        if read[0]["content"] != system:
            raise DataError(f"{row.place}: the system texts in the column `system` and in `{column}` differ. Keep one.")
    elif system is not None and not isinstance(system, str):
        raise DataError(f"{row.place}: `system` is {kind(system)}; wanted text.")
    return read


def unread_keys(row: Row, column: str) -> set[str]:
    """Return the keys of the answer that are not used. The chat template may use those of earlier turns."""
    turns = row.values.get(column)
    last = turns[-1] if isinstance(turns, list) and turns and isinstance(turns[-1], dict) else {}
    known = {"role", "content", "from", "value", *SWITCHES}
    return {key for key, value in last.items() if key not in known and value not in (None, "", [], {})}


def _turn(row: Row, column: str, number: int, turn: Any) -> dict[str, Any]:
    place = f"{row.place}, turn {number} of `{column}`"
    if not isinstance(turn, dict):
        raise DataError(
            f"{row.place}: turn {number} of `{column}` is {kind(turn)}; wanted an object with `role` and `content` "
            f"(or `from` and `value`)."
        )
    # In a table every turn has all keys, with null for a missing value.
    sharegpt = any(turn.get(key) is not None for key in ("from", "value"))
    if sharegpt and not any(turn.get(key) is not None for key in ("role", "content")):
        role_key, content_key = "from", "value"
    else:
        role_key, content_key = "role", "content"
    role = text_column(Row(place, turn), role_key, rename=False)
    empty_system = role == "system" and turn.get(content_key) == ""
    content = "" if empty_system else text_column(Row(place, turn), content_key, rename=False)
    if role in FUNCTIONS and role_key == "from":
        raise DataError(f"{place} is by `{role}`; function calls are not supported. Remove the row.")
    if role_key == "role":
        return {**turn, "role": SPEAKERS.get(role, role)}
    if role not in SPEAKERS:
        raise DataError(f"{place} is by `{role}`; wanted one of {', '.join(SPEAKERS)}.")
    return {"role": SPEAKERS[role], "content": content}


def _check_answer(row: Row, column: str, last: dict[str, Any]) -> None:
    """Check the last turn: it is the only one that is trained, and only its text."""
    for key in ("tool_calls", "function_call"):
        if last.get(key):
            raise DataError(
                f"{row.place}: the last turn of `{column}` has `{key}`; function calls are not supported. "
                f"Remove the row."
            )
    for key in SWITCHES:
        if last.get(key) is not None and not last[key]:
            raise DataError(
                f"{row.place}: the last turn of `{column}` is excluded from the loss (`{key}`: {last[key]}), but it is "
                f"the only one that gorp trains. Remove the row, or the turns after the one to train."
            )
