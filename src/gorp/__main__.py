"""`python -m gorp` is `gorp`."""

from gorp.cli import app


if __name__ == "__main__":
    app(prog_name="gorp")
