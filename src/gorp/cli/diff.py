"""`gorp diff`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gorp.cli.command import AsJson, Place, errors, loading, print_json, say
from gorp.errors import shown


LAYERS = 10
"""Most layers that are printed; `--json` has all of them."""

SETTINGS = 12
"""Most settings that are printed."""


def diff(
    workspace: Place = Path("."),
    old: Annotated[str | None, typer.Argument(help="A version. Default: the one that NEW was trained from.")] = None,
    new: Annotated[str | None, typer.Argument(help="Another version. Default: the current one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two versions: scores, answers, weights, protected directions, settings. No model is loaded."""
    with errors():
        with loading():
            from gorp.workspace.diff import diff as compare
        from gorp.cli.console import console
        from gorp.workspace.place import place

        folder, source = place(workspace)
        found = compare(folder, old, new, source=source)
        if as_json:
            print_json(found)
            return
        out = console()
        say(_heading(found))
        if found["tasks"]:
            out.print(_tasks(found))
        for problem in dict.fromkeys(facts["problem"] for facts in found["tasks"].values() if facts["problem"]):
            tasks = [task for task, facts in found["tasks"].items() if facts["problem"] == problem]
            say(f"{', '.join(tasks)}: answers not compared: {problem}")
        if found["guard"] is not None:
            from gorp.workspace.gate_words import level_in_words

            say(level_in_words(found["guard"]))
        if found["guard_problem"] is not None:
            say(f"guard text: not compared: {found['guard_problem']}")
        say("")
        _show_weights(out, found)
        _show_settings(found)


def _heading(found: Mapping[str, Any]) -> str:
    """Return a line on both versions, and how they are related."""
    old, new = (f"{found[side]['version']} ({found[side]['task'] or 'base model'})" for side in ("old", "new"))
    if found["left"] and found["gained"]:
        return f"{old} -> {new}, on two branches from {found['ancestor']}"
    between = found["gained"] or found["left"]
    direction = "" if found["gained"] else ", back"
    return f"{old} -> {new}{direction}" + (f", {len(between)} versions" if len(between) > 1 else "")


def _tasks(found: Mapping[str, Any]) -> Any:
    from gorp.cli.console import add_row, empty_table
    from gorp.report.wording import signed

    old, new = found["old"]["version"], found["new"]["version"]
    headings = [old, new, "change (95 % interval)", "right to wrong", "wrong to right", "rows"]
    table = empty_table("", ["task"], headings)
    for task, facts in found["tasks"].items():
        cells = [_score(facts[side], found["made_by"]) for side in ("old", "new")]
        if facts["problem"] is None:
            low, high = facts["interval"]
            cells += [f"{signed(facts['difference'])} ({signed(low)} to {signed(high)})"]
            cells += [str(facts[key]) for key in ("lost", "won", "rows")]
        else:
            cells += ["–"] * 4
        add_row(table, task if any(facts["learned"]) else f"{task} (not learned)", *cells)
    return table


def _score(score: float | None, made_by: str | None) -> str:
    """Return a score: percent with one decimal; one that `evaluate=` returned has a unit of its own."""
    from gorp.report.wording import number

    return f"{score:.4g}" if made_by is not None and score is not None else number(score)


def _show_weights(out: Any, found: Mapping[str, Any]) -> None:
    """Print how far the weights moved in all, and the layers that moved most."""
    from gorp.cli.console import add_row, empty_table, fraction

    together, weights = found["together"], found["weights"]
    if not together["changed"]:
        say("no weight differs")
        return
    relative = "" if together["relative"] is None else f", {percent(together['relative'])} of their norm"
    say(f"{together['changed']} of {len(weights)} weights differ by {together['norm']:.3g} in all{relative}")
    if found["base"]:
        say(f"not relative to the weights: {found['base']}")
    by = "relative" if together["relative"] is not None else "norm"
    order = sorted(weights, key=lambda name: -(weights[name][by] or 0.0))
    of = f" ({LAYERS} of {len(order)}, those that changed most)" if len(order) > LAYERS else ""
    table = empty_table("", [f"layer{of}"], ["change", "of W", "leak", "largest cosine", "capacity", "released"])
    for name in order[:LAYERS]:
        facts = weights[name]
        cosine = facts["cosines"][0] if facts["cosines"] else None
        capacity = " -> ".join("–" if share is None else f"{100 * share:.0f} %" for share in facts["capacity"])
        cells = (f"{facts['norm']:.3g}", percent(facts["relative"]), fraction(facts["leak"]), fraction(cosine))
        add_row(table, name.removesuffix(".weight"), *cells, capacity, str(facts["released"] or "–"))
    out.print(table)
    if together["leak"] is not None:
        say(
            f"leak: share of the change that acts on what {found['old']['version']} protects, worst layer "
            f"{fraction(together['leak'])}; largest cosine: of the angle between a direction of the change, however "
            "little used, and the protected subspace"
        )
    if together["released"]:
        say(
            f"{together['released']} protected directions were released on the way, with the energy of "
            f"{together['released_energy']:.3g} tasks"
        )


def percent(share: float | None) -> str:
    """Return a share as percent, with two digits below 10; a dash for None."""
    if share is None:
        return "–"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _show_settings(found: Mapping[str, Any]) -> None:
    lines = [f"{item['key']}: {_value(item['old'])} -> {_value(item['new'])}" for item in found["settings"]]
    lines += [f"package {item['key']}: {item['old']} -> {item['new']}" for item in found["packages"]]
    say("")
    say("no setting differs" if not lines else "settings that differ:")
    for line in lines[:SETTINGS]:
        say(f"  {line}")
    if len(lines) > SETTINGS:
        say(f"  and {len(lines) - SETTINGS} more (--json)")


def _value(value: Any) -> str:
    """Return a setting in a few words; None is what is not set, and the entry of a task that is not listed."""
    return "none" if value is None else shown(json.dumps(value, ensure_ascii=False), 60)
