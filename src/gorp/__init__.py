"""Continual fine-tuning of language models that keeps what was learned.

A model is taught one task after another. What the earlier tasks need is remembered as a shared gradient space, and
later tasks move only in directions orthogonal to it.
"""

__version__ = "0.1.0"
