"""A workspace: the folder that holds the configuration, the versions and the scores of a sequence of tasks.

yaml_file.py     read a YAML file, with limits on its size
config.py        the checked configuration of a run
blocks.py        convert mappings to dataclasses; errors name their place in the YAML
state.py         the tensors of a version
mark.py          the file that marks a folder as a workspace; which folders may become one
lock.py          allow one writer at a time
seal.py          a digest inside a JSON object
ledger.py        the log of events, each line chained to the lines before
version.py       a version and its checks
accepted.py      the configuration of the last run, with relative paths
store.py         the versions on disk, CURRENT
scores.py        the scores, each with the conditions it was measured under; the score matrix
changes.py       which settings may change between two runs
learned.py       the eval rows of learned tasks
check_rows.py    check the rows of tasks, and compare all tasks
yaml_entry.py    insert a task into the text of a YAML
first_yaml.py    write the first YAML
add.py           append a task to the YAML
validation.py    check a YAML and everything it names
prepare.py       load and check everything before training
preview.py       number of rows and an example row of each task
scoring.py       score versions on tasks
leaks.py         the leak of a task against what each earlier task protected
record.py        the content of version.json
unfinished.py    a training that was interrupted
pending.py       what a run is going to do, checked and said before it
run.py           train the pending tasks, score, write versions
evaluate.py      score a version again
gate_config.py   the `gate:` block of the YAML
gate.py          compare a version with an earlier one on the tasks that the earlier one had learned
judge.py         the verdict on a new version within a run
held.py          versions that the gate did not accept, and what that means for the order of tasks
promote.py       make a later version the current one
rollback.py      go back to an earlier version
present.py       the YAML as it is now, read without torch
loaded.py        the base model of a version, its deltas, and the rows that it is scored on
ask.py           ask a version in the form of one of its tasks
export.py        write a version as a merged model or a LoRA adapter
written.py       the files of an export, written, read back and compared with the live model
garbage.py       what a workspace no longer needs
gc.py            remove it
base_files.py    the weights of the base model, read from its files
flips.py         answers of two versions to the same rows
changed_weights.py what differs between the weights of two versions
diff.py          compare two versions
overview.py      all that a report says
page.py          the page of a report
place.py         find the workspace that a command-line argument means
status.py        read the state of a workspace
verbs.py         the commands as methods of `Workspace`
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gorp.workspace.status import status
from gorp.workspace.store import Version, Workspace


if TYPE_CHECKING:
    from gorp.workspace.add import add_task
    from gorp.workspace.config import RunConfig, effective, load_config, parse_config
    from gorp.workspace.evaluate import evaluate_version
    from gorp.workspace.first_yaml import init_config
    from gorp.workspace.pending import plan
    from gorp.workspace.run import run_sequence
    from gorp.workspace.validation import validate


__all__ = [
    "RunConfig",
    "Version",
    "Workspace",
    "add_task",
    "effective",
    "evaluate_version",
    "init_config",
    "load_config",
    "parse_config",
    "plan",
    "run_sequence",
    "status",
    "validate",
]

_MODULES = dict.fromkeys(("RunConfig", "effective", "load_config", "parse_config"), "config") | {
    "evaluate_version": "evaluate",
    "add_task": "add",
    "init_config": "first_yaml",
    "plan": "pending",
    "run_sequence": "run",
    "validate": "validation",
}
"""Names whose modules import torch and transformers; such a module is imported when its name is first used."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
