"""GORP. `method` is the class that a run uses, `task` holds the state of one running task, `config` the options."""

from gorp.methods.gorp.config import MODE_DEFAULTS, GorpConfig
from gorp.methods.gorp.method import Gorp


__all__ = ["MODE_DEFAULTS", "Gorp", "GorpConfig"]
