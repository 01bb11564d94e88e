"""The turns of a chat, in the two ways that they are written down, as `role` and `content`."""

from typing import Any

from gorp.data.rows import Row, kind, names, text_column
from gorp.errors import DataError


SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), "assistant"),
    "system": "system",
}
"""Who speaks, in ShareGPT's words -> the role that chat templates know."""

FUNCTIONS = ("tool", "function", "function_call", "tool_call", "tool_response", "observation")
"""ShareGPT's words for calls and for what they return. With `role`, the chat template says whether it knows them."""

MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Columns whose contents the turns speak of and gorp cannot show to a model."""

SWITCHES = ("weight", "train", "loss")
"""Keys by which a turn says whether its words count in the loss."""


def read_turns(row: Row, column: str) -> list[dict[str, Any]]:
    """The turns in `column`, the last one the answer, each with `role` and `content`.

    A turn is `{"role": ..., "content": ...}`, whose other keys stay for the chat template, or ShareGPT's
    `{"from": "human" or "gpt" or "system", "value": ...}`. Text in a column `system` becomes the first turn.

    Raises:
        DataError: For what is no list of turns; a system text in both places; calls of functions, images and the like;
            an answer that is marked as not to be learned from.
    """
    turns = row.values.get(column)
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"{row.place}: wanted a non-empty list in the column `{column}`; columns found: {names(row.values)}."
        )
    for name in ("tools", "functions", *MEDIA):
        if row.values.get(name):
            raise DataError(
                f"{row.place}: `{name}` beside `{column}`: calls of functions, images, sound and films are not "
                f"supported. Remove the row, or the column if the answer does not rest on it."
            )
    read = [_turn(row, column, number, turn) for number, turn in enumerate(turns, 1)]
    _check_answer(row, column, turns[-1])
    system = row.values.get("system")
    if isinstance(system, str) and system.strip():
        if read[0]["role"] != "system":
            return [{"role": "system", "content": system}, *read]
        if read[0]["content"] != system:
            raise DataError(f"{row.place}: a system text in the column `system` and another in `{column}`. Keep one.")
    elif system is not None and not isinstance(system, str):
        raise DataError(f"{row.place}: `system` is {kind(system)}; wanted text.")
    return read


def unread_keys(row: Row, column: str) -> set[str]:
    """Keys of the answer that nothing uses; earlier turns' keys are the chat template's business."""
    turns = row.values.get(column)
    last = turns[-1] if isinstance(turns, list) and turns and isinstance(turns[-1], dict) else {}
    known = {"role", "content", "from", "value", *SWITCHES}
    return {key for key, value in last.items() if key not in known and value not in (None, "", [], {})}


def _turn(row: Row, column: str, number: int, turn: Any) -> dict[str, Any]:
    place = f"{row.place}, turn {number} of `{column}`"
    if not isinstance(turn, dict):
        raise DataError(
            f"{row.place}: turn {number} of `{column}` is no object with `role` and `content` (or `from` and `value`)."
        )
    # A column of a table gives every turn all keys, null where there are none.
    shared = any(turn.get(key) is not None for key in ("from", "value"))
    if shared and not any(turn.get(key) is not None for key in ("role", "content")):
        who, words = "from", "value"
    else:
        who, words = "role", "content"
    role = text_column(Row(place, turn), who, rename=False)
    empty_system = role == "system" and turn.get(words) == ""
    content = "" if empty_system else text_column(Row(place, turn), words, rename=False)
    if role in FUNCTIONS and who == "from":
        raise DataError(f"{place} is by `{role}`: calls of functions are not supported. Remove the row.")
    if who == "role":
        return {**turn, "role": SPEAKERS.get(role, role)}
    if role not in SPEAKERS:
        raise DataError(f"{place} is by `{role}`; known are {', '.join(SPEAKERS)}.")
    return {"role": SPEAKERS[role], "content": content}


def _check_answer(row: Row, column: str, last: dict[str, Any]) -> None:
    """Only the last turn is learned, and of it only its words."""
    for key in ("tool_calls", "function_call"):
        if last.get(key):
            raise DataError(
                f"{row.place}: the last turn of `{column}` holds `{key}`; calls of functions are not supported. "
                f"Remove the row."
            )
    for key in SWITCHES:
        if last.get(key) is not None and not last[key]:
            raise DataError(
                f"{row.place}: the last turn of `{column}` is not to be learned from (`{key}`: {last[key]}), but it is "
                f"the only one that gorp learns. Remove the row, or the turns behind the one to learn."
            )
