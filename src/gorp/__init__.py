"""Continual fine-tuning of language models that keeps what was learned.

A model is taught one task after another. The input directions that earlier tasks need are kept in a protected subspace
S, and later tasks change the weights orthogonally to it.

The names of the public Python API can be imported from here. Each is imported from its module on first use, so that
`import gorp` needs neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from gorp.attach import Protection
    from gorp.data import Encoding, Task, TaskSpec, load_task
    from gorp.errors import GorpError
    from gorp.evaluation import AccuracyMatrix, EvalConfig, TaskScore, score_task, summary
    from gorp.layers.lora import LoraSettings
    from gorp.methods import METHODS, build_method
    from gorp.methods.gorp import GorpConfig
    from gorp.models.load import ModelConfig, load_model
    from gorp.training import TaskResult, train_task
    from gorp.workspace import (
        RunConfig,
        Version,
        Workspace,
        evaluate_version,
        load_config,
        plan,
        run_sequence,
        status,
    )


__version__ = "0.1.0"

__all__ = [  # noqa: RUF022  in the order in which a program uses them
    "ModelConfig",
    "load_model",
    "TaskSpec",
    "Task",
    "load_task",
    "Encoding",
    "METHODS",
    "build_method",
    "GorpConfig",
    "LoraSettings",
    "train_task",
    "TaskResult",
    "Protection",
    "EvalConfig",
    "score_task",
    "TaskScore",
    "AccuracyMatrix",
    "summary",
    "load_config",
    "RunConfig",
    "plan",
    "run_sequence",
    "status",
    "evaluate_version",
    "Workspace",
    "Version",
    "GorpError",
]

_MODULES = {
    "models.load": ("ModelConfig", "load_model"),
    "data": ("TaskSpec", "Task", "load_task", "Encoding"),
    "methods": ("METHODS", "build_method"),
    "methods.gorp": ("GorpConfig",),
    "layers.lora": ("LoraSettings",),
    "training": ("train_task", "TaskResult"),
    "attach": ("Protection",),
    "evaluation": ("EvalConfig", "score_task", "TaskScore", "AccuracyMatrix", "summary"),
    "workspace": (
        "load_config",
        "RunConfig",
        "plan",
        "run_sequence",
        "status",
        "evaluate_version",
        "Workspace",
        "Version",
    ),
    "errors": ("GorpError",),
}
"""Module -> the public names that are imported from it."""


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
