"""Check a workspace, or a folder of `gorp.Protection`: what `gorp train` needs of it, and every digest."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from gorp.doctor.finding import Finding, free_bytes, run, size
from gorp.errors import CheckpointError, GorpError
from gorp.storage import read_json
from gorp.workspace.garbage import bytes_of, find
from gorp.workspace.guard_values import read_guard_values
from gorp.workspace.held import held_in_use
from gorp.workspace.lock import LOCK, holder_of
from gorp.workspace.mark import check_place
from gorp.workspace.scores import Scores
from gorp.workspace.seal import is_sealed
from gorp.workspace.status import status
from gorp.workspace.store import Workspace
from gorp.workspace.version import BASE_PARTS, Version, read_version


def check_workspace(root: Path, *, source: Path | None = None) -> Iterator[Finding]:
    """Yield what is found of a workspace. Every file with a digest is read, and the files of the base model.

    Args:
        root: The folder.
        source: The YAML that the user named, if any.
    """
    store = Workspace(root)
    for what, check in (
        ("folder", lambda: _folder(store)),
        ("lock", lambda: _lock(store)),
        ("ledger", lambda: _ledger(store)),
        ("versions", lambda: _versions(store)),
        ("scores", lambda: _scores(store)),
        ("yaml", lambda: _yaml(store, source)),
        ("base model", lambda: _base(store, source)),
        ("disk", lambda: _disk(store)),
    ):
        yield from run(what, check)


def _folder(store: Workspace) -> Iterator[Finding]:
    check_place(store.root)
    closed = []
    for folder, _, names in os.walk(store.root):
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            closed.append(Path(folder))
        closed += [Path(folder, name) for name in names if not os.access(Path(folder, name), os.R_OK)]
    if closed:
        some = ", ".join(str(path.relative_to(store.root)) for path in closed[:3])
        says = f"{len(closed)} files or folders cannot be read or written by this user, for example {some}"
        yield Finding("problem", "folder", says, "Change their owner or permissions.")
    else:
        yield Finding("ok", "folder", f"{store.root}: can be read and written")


def _lock(store: Workspace) -> Iterator[Finding]:
    held = holder_of(store.root)
    if held is None:
        yield Finding("ok", "lock", "no process writes here")
        return
    holder, running = held
    who = f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}: `{holder.get('command')}`"
    if not running:
        says = f"left by {who if holder else 'a process that ended'}; it has no effect"
        yield Finding("ok", "lock", says)
    elif holder.get("host") != socket.gethostname():
        advice = f"If that process no longer runs, remove {store.root / LOCK}."
        yield Finding("warning", "lock", f"held on another computer, by {who}", advice)
    else:
        yield Finding("warning", "lock", f"held by {who}", "Wait until it ends; what it is writing is not checked.")


def _ledger(store: Workspace) -> Iterator[Finding]:
    events, problem = store.history()
    if problem:
        yield Finding("problem", "ledger", problem)
    else:
        yield Finding("ok", "ledger", f"{len(events)} events, none changed")


def _versions(store: Workspace) -> Iterator[Finding]:
    """Read every version that the ledger names, and compare the digest of each of its files."""
    removed, checked = store.removed(), 0
    entered = {event["version"]: event.get("sha256") for event in store.ledger() if event["event"] == "version"}
    whole = True
    for name, sha256 in entered.items():
        if name in removed:
            continue
        folder = store.root / "versions" / name
        try:
            if not folder.is_dir():
                raise CheckpointError(f"{folder}: missing. Restore it from a copy.")
            version = read_version(folder, sha256)
            version.verify(version.record["base"]["sha256"])  # only its own files: the base model has its own check
            checked += 1
        except CheckpointError as error:
            whole = False
            yield Finding("problem", "versions", str(error))
    lineage = store.lineage()  # raises if CURRENT or an ancestor is missing
    if whole:
        yield Finding("ok", "versions", f"{checked} whole; the current one is {lineage[-1].name}")
    for line in store.remarks():
        yield Finding("warning", "versions", line)
    for version in store.versions() if whole else ():
        if not version.accepted and (lines := held_in_use(store, version)):
            yield Finding("ok", "versions", lines[-1])


def _scores(store: Workspace) -> Iterator[Finding]:
    scores, damaged = Scores(store.root / "eval"), []
    for path in scores.changed():
        advice = "`gorp eval` writes it again."
        yield Finding("warning", "scores", f"{path}: was changed after it was written", advice)
    for path in scores.removed():
        advice = f"`gorp eval --version {path.name.partition('-')[0]}` writes it again."
        yield Finding("warning", "scores", f"{path}: missing", advice)
    for line in scores.lost(store.lineage()):
        yield Finding("warning", "scores", line)
    current = store.current()
    learned = dict.fromkeys(task for version in store.versions() for task in version.contains)
    for task in () if current.is_protection else learned:
        path = store.root / "eval" / "rows" / f"{task}.json"
        if not path.is_file():
            advice = "Keep its file of eval rows (`eval:`); `gorp train` stores them again."
            yield Finding("warning", "scores", f"{path}: missing", advice)
    for path in sorted((store.root / "eval" / "rows").glob("*.json")):
        kept = read_json(path)
        if not is_sealed(kept, path.stem):
            damaged.append(path)
    for version in _guarded(store):
        try:
            read_guard_values(store.root / "eval", version)
        except CheckpointError as error:
            yield Finding("warning", "scores", str(error))
    for path in damaged:
        advice = "Restore it from a copy, or give the task a file of eval rows (`eval:`)."
        yield Finding("problem", "scores", f"{path}: damaged or changed", advice)
    if not damaged and not current.is_protection:
        yield Finding("ok", "scores", f"{sum(map(len, scores.cells.values()))} scores and the kept rows are whole")


def _guarded(store: Workspace) -> list[str]:
    """Return the versions that have losses on the guard text, or had them when a version was judged."""
    names = {path.stem for path in (store.root / "eval" / "guard").glob("v*.json")}
    for version in store.versions():
        judged = version.record.get("gate") or {}
        if judged.get("guard") is not None:
            names |= {version.name, judged["against"]}
    return sorted(names.difference(store.removed()))


def _yaml(store: Workspace, source: Path | None) -> Iterator[Finding]:
    if store.current().is_protection:
        return
    from gorp.workspace.config import load_config

    state = status(store.root, config=source)
    path = None if state["config"] is None else Path(state["config"])
    if path is None or not path.is_file():
        says = f"{path or 'none'}: not there; the configuration of the last `gorp train` is used"
        yield Finding("warning", "yaml", says, "Name the YAML, or put it beside the workspace under its name.")
        return
    load_config(path)
    if state["problem"]:
        yield Finding("problem", "yaml", state["problem"], "Change it back, or use another workspace.")
    else:
        yield Finding("ok", "yaml", f"{path}: {len(state['tasks'])} tasks, {len(state['pending'])} pending")


def _base(store: Workspace, source: Path | None) -> Iterator[Finding]:
    """Compare the base model with the digests that the current version recorded. Nothing is downloaded or run."""
    current = store.current()
    if current.is_protection:
        yield _named_base(store, current)
        return
    from gorp.models.files import base_digests, check_folder
    from gorp.models.load import on_this_machine
    from gorp.progress import Progress
    from gorp.workspace.evaluate import present_configuration

    # No code runs here, so it need not be allowed.
    model = present_configuration(store, Progress(), source, trust_remote_code=True).model
    folder = on_this_machine(model)
    if folder is None:
        says = f"{model.path}: neither a folder nor in the cache of the hub"
        yield Finding("warning", "base model", says, "The next command downloads it, or cannot find it.")
        return
    check_folder(folder, trust_remote_code=model.trust_remote_code)
    digests, known = base_digests(folder, trust_remote_code=model.trust_remote_code), current.record["base"]
    keys = ["sha256", *BASE_PARTS]
    differing = [BASE_PARTS.get(key, "weights") for key in keys if known.get(key, digests[key]) != digests[key]]
    if differing:
        says = (
            f"{folder}: not the model that the versions were trained from: other {', '.join(dict.fromkeys(differing))}"
        )
        yield Finding("problem", "base model", says, "Restore its original files, or name its folder with --base.")
    else:
        yield Finding("ok", "base model", f"{model.path}: the same as when it was trained")


def _named_base(store: Workspace, current: Version) -> Finding:
    """Say whether the base model of a protection folder is there; its weights are compared when it is loaded."""
    path = current.record["base"]["path"]
    if not path:
        return Finding("warning", "base model", "it was made in memory, so nothing says where it is", "Use --base.")
    folder = store.root / path if path.startswith(".") else Path(path)
    if (path.startswith(".") or os.path.isabs(path)) and not folder.is_dir():
        return Finding("problem", "base model", f"{folder}: no longer there", "Restore it, or name it with --base.")
    return Finding("ok", "base model", f"{path}; its weights are compared when it is loaded")


def _disk(store: Workspace) -> Iterator[Finding]:
    free = free_bytes(store.root)
    largest = max((bytes_of(path) for path in (store.root / "versions").glob("v*")), default=0)
    says = f"the workspace has {size(bytes_of(store.root))}; {size(free)} are free"
    if free < 2 * largest:  # a version is written beside the checkpoints of its training
        advice = "Free some space before the next task; `gorp gc` may help."
        yield Finding("warning", "disk", f"{says}, less than twice the largest version ({size(largest)})", advice)
    else:
        yield Finding("ok", "disk", says)
    try:
        freed = sum(item.bytes for item in find(store))
    except GorpError:  # said by another check
        return
    if freed:
        yield Finding("ok", "disk", f"`gorp gc` would free {size(freed)}")
