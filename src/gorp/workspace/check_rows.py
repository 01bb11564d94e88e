"""Read the rows of tasks in bounded memory, check them, and compare every task with the eval rows of every other.

A training row that asks what an eval row asks is a warning, as are duplicates and different answers to one prompt:
data may be meant to be so. Rows that cannot be trained are problems.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from gorp.data import TaskSpec, forms_of
from gorp.data.form import from_list
from gorp.errors import GorpError
from gorp.progress import Progress
from gorp.storage import read_json
from gorp.workspace.config import RunConfig
from gorp.workspace.learned import is_kept, kept_path
from gorp.workspace.overlaps import EvalRows, Overlaps
from gorp.workspace.row_report import Report
from gorp.workspace.scan import Scan, TaskRows, asked_rows, open_task, scan
from gorp.workspace.store import Workspace
from gorp.workspace.token_counts import Reader, reader_of


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
    for spec in config.tasks:
        check.eval_rows(spec)
    for task in check.opened.values():
        check.train_rows(task)
    for name in names:
        if name in check.opened:
            scans = {part: check.scans.get((name, part)) for part in ("train", "eval")}
            check.report.describe(check.opened[name], scans, check.reader, progress)
    return check.report


class _Check:
    """What is known while the tasks are read: first all eval rows, then all training rows."""

    def __init__(self, config: RunConfig, names: Collection[str], workspace: Workspace, progress: Progress) -> None:
        self.config, self.names, self.workspace, self.progress = config, names, workspace, progress
        self.report = Report()
        self.opened: dict[str, TaskRows] = {}
        self.scans: dict[tuple[str, str], Scan] = {}
        self.sets: dict[str, EvalRows] = {}
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

    def eval_rows(self, spec: TaskSpec) -> None:
        """Collect what the eval rows of a task ask: from `eval`, from the workspace, or by the split of train."""
        name, task, kept = spec.name, self.opened.get(spec.name), kept_path(self.workspace, spec.name)
        self.sets[name] = EvalRows(name)
        if task is not None and task.held_out is not None:
            if name in self.names:
                self.scans[name, "eval"] = scan(task, "eval", progress=self.progress, keep=self.sets[name])
            else:
                self._add(task, "eval")
        elif kept.is_file() and is_kept(stored := read_json(kept), name):
            rows = from_list(stored["rows"])
            if any(form.chat for form in forms_of(rows)):
                why = "only their rendered chats are kept"
                self.report.warnings.append(f"not compared with the eval rows of {name}: {why}")
                return
            self.sets[name] = EvalRows(name, rendered=True)
            for line, prompt in enumerate(rows["prompt"][:], 1):
                self.sets[name].add(prompt, line)
        elif task is not None:
            self._split(task)
        elif name not in self.names and spec.eval is not None and Path(spec.eval).is_file():
            try:  # its training rows are gone, its eval rows are not
                self._add(self._opened(replace(spec, train=spec.eval, eval=None)), "train", name)
            except GorpError as error:
                self.report.warnings.append(f"not compared with the eval rows of {name}: {error}")

    def _add(self, task: TaskRows, part: str, name: str | None = None, lines: Collection[int] | None = None) -> None:
        for asked, _, line in asked_rows(task, part, progress=self.progress):
            if lines is None or line in lines:
                self.sets[name or task.spec.name].add(asked, line)

    def _split(self, task: TaskRows) -> None:
        """Find the rows of train that are split off as eval."""
        name = task.spec.name
        found = self.scans[name, "train"] = scan(task, "train", progress=self.progress, split=True)
        if found.cut is None and not found.problems.count:
            self.report.warnings.append(
                f"task {name}: which rows are split off as eval is known only when `gorp train` has read all rows; "
                "give `eval` to compare them with the other tasks"
            )
        if found.cut and len(self.config.tasks) > 1:
            self._add(task, "train", lines=set(found.cut))

    def train_rows(self, task: TaskRows) -> None:
        """Compare the training rows of a task with eval rows: of all tasks if it is checked, otherwise of those."""
        name, checked = task.spec.name, task.spec.name in self.names
        sets = [
            rows
            for other, rows in self.sets.items()
            if (checked or other in self.names) and (other != name or task.held_out is not None)
        ]
        overlaps, known = Overlaps(sets), self.scans.get((name, "train"))
        if checked and known is None:
            self.scans[name, "train"] = scan(task, "train", progress=self.progress, overlaps=overlaps)
        elif overlaps.asked or overlaps.prompts:
            cut = set(() if known is None else known.cut or ())
            for asked, prompt, line in asked_rows(task, "train", progress=self.progress, prompts=overlaps.prompts):
                if line not in cut:
                    overlaps.look(asked, prompt, line)
        self.report.add_overlaps(task, overlaps.found())
