"""A folder that holds a sequence of tasks: its configuration, its versions, its scores.

yaml_file.py  a YAML, bounded before it is built
config.py     the YAML, checked
blocks.py     mappings to dataclasses, with the place of every error
state.py      what a finished task leaves, as tensors
mark.py       where a workspace may be; its mark
lock.py       one writer a workspace
seal.py       a digest inside a JSON object
ledger.py     what happened, each line bound to those before
version.py    a version, checked where it is read
accepted.py   the configuration that a run began with
store.py      versions on disk, CURRENT
scores.py     every score with what it was measured on; the matrix
changes.py    what may change between two runs
learned.py    what is needed of a learned task
lengths.py    rows against the model's positions
prepare.py    everything that can be refused before training
preview.py    what a run would read, for the eye
scoring.py    versions on tasks, cell by cell
leaks.py      a task's change against what each earlier task protected
record.py     what version.json says
unfinished.py a training that ended early
run.py        train what is pending, score, write the version
evaluate.py   score a version again
place.py      which workspace a command means
status.py     what there is, for reading
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gorp.workspace.status import status
from gorp.workspace.store import Version, Workspace


if TYPE_CHECKING:
    from gorp.workspace.config import RunConfig, effective, load_config, parse_config
    from gorp.workspace.evaluate import evaluate_version
    from gorp.workspace.run import plan, run_sequence


__all__ = [
    "RunConfig",
    "Version",
    "Workspace",
    "effective",
    "evaluate_version",
    "load_config",
    "parse_config",
    "plan",
    "run_sequence",
    "status",
]

_MODULES = dict.fromkeys(("RunConfig", "effective", "load_config", "parse_config"), "config") | {
    "evaluate_version": "evaluate",
    "plan": "run",
    "run_sequence": "run",
}
"""Names whose modules need torch and transformers: imported when they are first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
