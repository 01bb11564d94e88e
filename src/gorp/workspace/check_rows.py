"""Read the rows of tasks in bounded memory, check them, and compare every task with the rows of every other.

A training row that asks what an eval row asks, or what a training row of another task asks, is a warning, as are
duplicates and different answers to one prompt: data may be meant to be so. Rows that cannot be trained are problems.
"""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from gorp.data import TaskSpec, forms_of
from gorp.data.form import from_list
from gorp.errors import GorpError
from gorp.progress import Progress
from gorp.rows.overlaps import EvalRows, Overlaps
from gorp.rows.report import Report
from gorp.rows.scan import OnRow, Scan, TaskRows, asked_rows, open_task, scan
from gorp.rows.shared_prompts import SharedPrompts
from gorp.rows.token_counts import Reader, reader_of
from gorp.storage import read_json
from gorp.workspace.config import RunConfig
from gorp.workspace.learned import is_kept, kept_path
from gorp.workspace.store import Workspace


def check_rows(config: RunConfig, names: Collection[str], workspace: Workspace, progress: Progress) -> Report:
    """Check the rows of tasks, and compare them with those of all tasks of a configuration.

    Args:
        config: The configuration.
        names: The tasks to check. The other tasks are only compared with these.
        workspace: May keep the eval rows of learned tasks; it need not exist.
        progress: Shows the progress.

    Returns:
        The facts, and all problems and warnings; nothing is raised for rows.
    """
    check = _Check(config, names, workspace, progress)
    for spec in config.tasks:
        check.open(spec)
    with SharedPrompts(list(check.opened.values()), names) as shared:
        split = [spec for spec in config.tasks if not check.eval_rows(spec)]
        for spec in split:
            check.split(spec, shared)
        for task in check.opened.values():
            check.train_rows(task, shared)
        check.compare(shared)
    for name in names:
        if name in check.opened:
            scans = {part: check.scans.get((name, part)) for part in ("train", "eval")}
            check.report.describe(check.opened[name], scans, check.reader, progress)
    return check.report


class _Check:
    """What is known while the tasks are read: first all eval rows, then those that are split off, then train."""

    def __init__(self, config: RunConfig, names: Collection[str], workspace: Workspace, progress: Progress) -> None:
        self.config, self.names, self.workspace, self.progress = config, names, workspace, progress
        self.report = Report()
        self.opened: dict[str, TaskRows] = {}
        self.scans: dict[tuple[str, str], Scan] = {}
        self.sets: dict[str, EvalRows] = {}
        self.looked: dict[str, Overlaps] = {}
        """Tasks without `eval` -> what was found in train when the rows to be split off were not known yet."""
        self.reader: Reader | None = None
        try:
            self.reader = reader_of(config.model, config.encoding, config.eval)
        except GorpError as error:
            self.report.warnings.append(f"tokens are not counted, and chats not rendered: {error}")

    def open(self, spec: TaskSpec) -> None:
        """Open a task; the CL benchmark has a reader of its own and is left out, as are files that cannot be read."""
        if spec.format == "cl_benchmark" or Path(spec.train, "labels.json").is_file():
            return
        try:
            self.opened[spec.name] = self._opened(spec)
        except GorpError as error:
            if spec.name in self.names:
                self.report.refuse(error)
            else:
                self.report.warnings.append(f"not compared with the training rows of {spec.name}: {error}")

    def _opened(self, spec: TaskSpec) -> TaskRows:
        tokenizer = None if self.reader is None else self.reader.tokenizer
        return open_task(spec, tokenizer=tokenizer, date=self.config.encoding.date, progress=self.progress)

    def eval_rows(self, spec: TaskSpec) -> bool:
        """Collect what the eval rows of a task ask, from `eval` or from the workspace; return whether it has such."""
        name, task, kept = spec.name, self.opened.get(spec.name), kept_path(self.workspace, spec.name)
        if task is not None and task.held_out is not None:
            self.sets[name] = EvalRows(name)
            if name in self.names:
                self.scans[name, "eval"] = scan(task, "eval", progress=self.progress, keep=self.sets[name])
            else:
                self._add(task, "eval")
        elif kept.is_file() and is_kept(stored := read_json(kept), name):
            rows = from_list(stored["rows"])
            if any(form.chat for form in forms_of(rows)):
                why = "only their rendered chats are kept"
                self.report.warnings.append(f"not compared with the eval rows of {name}: {why}")
                return True
            self.sets[name] = EvalRows(name, rendered=True)
            for line, prompt in enumerate(rows["prompt"][:], 1):
                self.sets[name].add(prompt, line)
        elif task is None and name not in self.names and spec.eval is not None and Path(spec.eval).is_file():
            self.sets[name] = EvalRows(name)
            try:  # its training rows are gone, its eval rows are not
                self._add(self._opened(replace(spec, train=spec.eval, eval=None)), "train", name)
            except GorpError as error:
                self.report.warnings.append(f"not compared with the eval rows of {name}: {error}")
        else:
            return task is None
        return True

    def _add(self, task: TaskRows, part: str, name: str | None = None, lines: Collection[int] | None = None) -> None:
        for asked, _, line in asked_rows(task, part, progress=self.progress, lines=lines):
            self.sets[name or task.spec.name].add(asked, line)

    def split(self, spec: TaskSpec, shared: SharedPrompts) -> None:
        """Find the rows of train that are split off as eval, and compare train with the eval rows known so far."""
        name, task = spec.name, self.opened[spec.name]
        overlaps = self.looked[name] = Overlaps(self._sets_for(name, list(self.sets.values())))
        each = _adding_to(shared, name)
        found = scan(task, "train", progress=self.progress, split=True, overlaps=overlaps, each=each)
        self.scans[name, "train"] = found
        if found.cut is None and not found.problems.count:
            self.report.warnings.append(
                f"task {name}: which rows are split off as eval is known only when `gorp train` has read all rows; "
                "give `eval` to compare them with the other tasks"
            )
        self.sets[name] = EvalRows(name)
        if found.cut and len(self.config.tasks) > 1:
            self._add(task, "train", lines=set(found.cut))

    def _sets_for(self, name: str, sets: list[EvalRows]) -> list[EvalRows]:
        """Return those eval sets that the training rows of a task must be compared with: unless both are unchecked."""
        own = self.opened[name].held_out is not None
        return [rows for rows in sets if (name in self.names or rows.task in self.names) and (rows.task != name or own)]

    def train_rows(self, task: TaskRows, shared: SharedPrompts) -> None:
        """Compare the training rows of a task with the eval rows that they were not compared with yet."""
        name, looked = task.spec.name, self.looked.get(task.spec.name)
        known = self.scans.get((name, "train"))
        sets = self._sets_for(name, [rows for rows in self.sets.values() if looked is None or rows.task in self.looked])
        overlaps = Overlaps(sets)
        each = _adding_to(shared, name) if known is None else None
        if name in self.names and known is None:
            self.scans[name, "train"] = scan(task, "train", progress=self.progress, overlaps=overlaps, each=each)
        elif overlaps.asked or overlaps.prompts or each is not None:
            for row in asked_rows(task, "train", progress=self.progress, prompts=overlaps.prompts, each=each):
                overlaps.look(*row)
        cut = () if known is None else known.cut or ()
        before = {} if looked is None else looked.found(without=cut)
        self.report.add_overlaps(task, before | overlaps.found(without=cut))

    def compare(self, shared: SharedPrompts) -> None:
        """Report the prompts that the training rows of two tasks share."""
        cut = {name: found.cut or () for (name, part), found in self.scans.items() if part == "train"}
        for (name, other), facts in shared.found(cut).items():
            self.report.add_shared(self.opened[name], self.opened[other], facts)


def _adding_to(shared: SharedPrompts, name: str) -> OnRow | None:
    """Return what adds a row of a task, or None if the task is not compared with another one."""
    return partial(shared.add, name) if name in shared else None
