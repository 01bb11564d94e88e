"""GORP: `method` is what a run calls, `task` what lives while one task runs, `config` the options."""

from gorp.methods.gorp.config import MODE_DEFAULTS, GorpConfig
from gorp.methods.gorp.method import Gorp


__all__ = ["MODE_DEFAULTS", "Gorp", "GorpConfig"]
