"""The page of a workspace: its verdict, scores, changed answers, capacity, costs and evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

from gorp.evaluation import AccuracyMatrix
from gorp.report import Answer, Judged, JudgedTask, Layer, Page, Sample, Samples, Table, verdicts
from gorp.report.page import MAX_SAMPLES
from gorp.report.wording import duration, number, signed, size, some
from gorp.workspace.gate import LEVEL
from gorp.workspace.gate_words import guard_in_words, guard_warnings, in_words, perplexity, since_base_in_words
from gorp.workspace.held import held_in_words


def workspace_page(facts: Mapping[str, Any], name: str) -> Page:
    """Return the page.

    Args:
        facts: The result of `gorp.workspace.overview.overview`.
        name: Name of the workspace, for the title.
    """
    matrix = matrix_of(facts)
    return Page(
        title=f"{name}: what the model still knows of each task",
        headline=headline(facts),
        about=_about(facts),
        warnings=_warnings(facts),
        judged=judged(facts),
        guard=_guard(facts),
        figures=_figures(facts),
        runs={f"{facts['subject']} ({facts['method']})": [matrix]},
        samples=_changed(facts),
        samples_heading="Answers that changed",
        layers=[
            Layer(name=item["name"], directions=item["directions"], share=item["capacity"], released=item["released"])
            for item in facts["layers"]
        ],
        layers_heading=f"Capacity of {facts['current']}",
        budget=facts["budget"],
        costs=_costs(facts),
        costs_note=(
            "Times are of training alone. What a version passes on is what the next task needs of the earlier ones: "
            "protected directions and changes of weights. "
            f"The workspace has {size(facts['disk']['bytes'])} in all."
        ),
        facts=_evidence(facts),
        commands=facts["commands"],
        notes=_notes(facts),
    )


def matrix_of(facts: Mapping[str, Any]) -> AccuracyMatrix:
    """Return the scores up to the judged version, on the tasks that it has learned; on all tasks for the base model."""
    return AccuracyMatrix.from_dict(facts["subject_matrix"])


def judged(facts: Mapping[str, Any]) -> Judged | None:
    """Return the verdict of the gate; None if the version could not be judged."""
    found = facts["gate"]
    if found is None:
        return None
    return Judged(
        verdict=found["verdict"],
        old=found["old"]["version"],
        new=found["new"]["version"],
        confidence=round(100 * (1 - 2 * LEVEL)),
        tasks=[
            JudgedTask(
                task=task,
                verdict=item["verdict"],
                sentence=in_words(task, item),
                old=item["old"],
                new=item["new"],
                change=0.0 - item["drop"],
                low=0.0 - item["interval"][1],
                high=0.0 - item["interval"][0],
                lost=item["lost"],
                won=item["won"],
                rows=item["rows"],
            )
            for task, item in found["tasks"].items()
        ],
        guard="" if found["guard"] is None else guard_in_words(found["guard"]),
        guard_since=since_base_in_words(found),
        guard_verdict=None if found["guard"] is None else found["guard"]["verdict"],
    )


def headline(facts: Mapping[str, Any]) -> str:
    """Return the verdict as one sentence that names the tasks."""
    found, version = facts["gate"], facts["subject"]
    if found is None:
        return f"{version} is not judged: {facts['not_judged']}"
    guard = found["guard"] is not None and found["guard"]["verdict"] == "hold"
    worse = f"predicts the guard text worse, by more than {found['guard']['margin']:g} nats per token" if guard else ""
    if guard and not any(item["verdict"] == "hold" for item in found["tasks"].values()):
        return f"{version} {worse}, and not by chance."
    if not found["tasks"]:
        return f"{version} has learned {facts['contains'][-1]}; there was no earlier task to lose."
    tasks: Mapping[str, Mapping[str, Any]] = found["tasks"]
    those = [task for task, item in tasks.items() if item["verdict"] == found["verdict"]]
    margins = {found["margins"][task] for task in those}
    margin = f"more than {min(margins):g} points" if len(margins) == 1 else "more than their margins"
    if found["verdict"] == "hold":
        lost = some([f"{number(tasks[task]['drop'])} points on {task}" for task in those])
        return f"{version} lost {lost}{' and ' + worse if guard else ''}, and not by chance."
    if found["verdict"] == "ship":
        return f"{version} is shown not to have lost {margin} on {some(those)}."
    needed = [tasks[task]["rows_needed"] for task in those]
    rows = "" if None in needed else f" About {max(needed):,} rows would show it."
    return f"Too few test rows to tell whether {version} lost {margin} on {some(those)}.{rows}"


def _about(facts: Mapping[str, Any]) -> str:
    """Return which version is current, and what waits."""
    current, learned = facts["current"], facts["contains"]
    kept = "stays" if facts["subject"] != current else "is"
    words = [f"{current} {kept} the current version; it has learned {some(learned) or 'no task yet'}."]
    if facts["subject"] != current:
        words.append(f"The scores and answers below are those up to {facts['subject']}, which is held.")
    if facts["pending"]:
        words.append(f"Pending: {some(facts['pending'])}.")
    return " ".join(words)


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    return [] if facts["gate"] is None else guard_warnings(facts["gate"])


def _guard(facts: Mapping[str, Any]) -> Table | None:
    """Return the loss on the guard text of each version up to the judged one; None if none was measured."""
    lines = [
        [version, f"{item['nll']:.3f}" if item["nll"] is not None else "–", perplexity(item["nll"]), str(item["rows"])]
        for version, item in facts["guard"].items()
    ]
    return Table(headings=["version", "nats per token", "perplexity", "texts"], lines=lines) if lines else None


def _figures(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the numbers of the current version that a reader in a hurry needs; each names it, as tables may not."""
    current, measures = facts["current"], facts["measures"]
    found = verdicts(AccuracyMatrix.from_dict(facts["matrix"]), len(facts["contains"]))
    shown = {"current version": current, f"tasks learned by {current}": str(len(facts["contains"]))}
    if measures.get("ap") is not None:
        shown[f"mean score of {current}"] = f"{number(measures['ap'])} %"
    if measures.get("bwt") is not None:
        shown[f"earlier tasks since learned, {current}"] = f"{signed(measures['bwt'])} points"
    if dropped := [item for item in found if item.dropped]:
        worst = min(dropped, key=lambda item: item.change)
        shown[f"largest loss of {current}: {worst.task}"] = f"{signed(worst.change)} points"
    return shown


def _changed(facts: Mapping[str, Any]) -> list[Samples]:
    """Return for each task the answers that changed between right and wrong."""
    found = facts["gate"] or {"flipped": {}}
    return [
        Samples(
            heading=f"{task}: {_turned(rows)}",
            rows=[_sample(row, found, facts["questions"][task]) for row in rows[:MAX_SAMPLES]],
            of=len(rows),
            chosen="those that turned wrong first",
        )
        for task, rows in found["flipped"].items()
        if rows
    ]


def _turned(rows: Sequence[Mapping[str, Any]]) -> str:
    lost = sum(row["lost"] for row in rows)
    parts = [f"{lost} turned wrong"] * bool(lost) + [f"{len(rows) - lost} turned right"] * (lost < len(rows))
    return ", ".join(parts)


def _sample(row: Mapping[str, Any], found: Mapping[str, Any], questions: Mapping[int, str]) -> Sample:
    answers = {
        found["old"]["version"]: Answer(row["old"], row["lost"]),
        found["new"]["version"]: Answer(row["new"], not row["lost"]),
    }
    return Sample(question=questions[row["index"]], prompt=row["prompt"], expected=row["expected"], answers=answers)


def _costs(facts: Mapping[str, Any]) -> Table:
    lineage, lines = _lineage(facts), []
    for item in facts["versions"]:
        name, state = item["version"], "another branch"
        if name in lineage:
            state = "current" if name == facts["current"] else "in use"
        elif (item["gate"] or {}).get("accepted") is False:  # also if its task is no longer listed
            state = "held"
        seconds = duration(item["seconds"]) if item["seconds"] else "–"
        created = item["created"][:10]
        passed = size(item["footprint_bytes"] or 0)
        lines.append([name, item["task"] or "base model", state, created, seconds, passed, size(item["disk_bytes"])])
    headings = ["version", "task", "state", "made", "training", "passes on", "on disk"]
    return Table(headings=headings, lines=lines, left=3)


def _lineage(facts: Mapping[str, Any]) -> set[str]:
    """Return the versions from v0 to the current one."""
    parents = {item["version"]: item["parent"] for item in facts["versions"]}
    names, name = set(), facts["current"]
    while name is not None:
        names.add(name)
        name = parents.get(name)
    return names


def _notes(facts: Mapping[str, Any]) -> list[str]:
    anyway = facts["anyway"].items()
    return [
        *(held_in_words(task, item, current=facts["current"]) for task, item in facts["held"].items()),
        *(f"{version} was promoted although the gate did not accept it: {reason}" for version, reason in anyway),
        *facts["warnings"],
        *(line for line in facts["remarks"] if line not in _warnings(facts)),
        *(f"{task}: {note}" for task, notes in facts["notes"].items() for note in notes),
    ]


def _evidence(facts: Mapping[str, Any]) -> dict[str, str]:
    evidence = facts["evidence"]
    shown = {"base model": f"{evidence['base']['path']}, SHA-256 of its weights {evidence['base']['sha256']}"}
    shown |= {f"{version}/version.json": f"SHA-256 {digest}" for version, digest in evidence["versions"].items()}
    shown |= {f"{facts['current']}/{file}": f"SHA-256 {digest}" for file, digest in evidence["files"].items()}
    if evidence["gate"] is not None:
        shown[evidence["gate"]["path"]] = f"SHA-256 {evidence['gate']['sha256']}"
    for name in ("device", "seed"):
        if evidence[name] is not None:
            shown[name] = str(evidence[name])
    shown["packages"] = ", ".join(f"{name} {version}" for name, version in evidence["packages"].items())
    return shown
