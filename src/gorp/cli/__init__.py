"""The command line."""

from gorp.cli.app import app


__all__ = ["app"]
