"""Start `gorp` commands, end them with signals, and wait for them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


LIMIT = 120.0
"""Seconds after which a command counts as hanging."""


@dataclass(frozen=True)
class Done:
    """What a command ended with."""

    code: int
    """Exit code; a signal that ended it as a negative number."""
    out: str
    err: str

    @property
    def is_clean(self) -> bool:
        """Whether nothing that it said is a traceback."""
        return "Traceback (most recent call last)" not in self.err


class Commands:
    """A process that forks commands (`tests.durability.server`).

    Args:
        folder: For what the commands say; created if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "PYTHONWARNINGS": "ignore"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.durability.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()

    def start(
        self, arguments: Sequence[str], folder: Path, *, operations: Path | None = None, kill_before: int | None = None
    ) -> "Running":
        """Start `gorp` with `arguments` in `folder`; see `tests.durability.operations` for the other two."""
        self._count += 1
        out, err = (self.folder / f"{self._count}.{end}" for end in ("out", "err"))
        request: dict[str, Any] = {"start": list(arguments), "folder": str(folder), "out": str(out), "err": str(err)}
        request |= {"operations": operations and str(operations), "kill_before": kill_before}
        return Running(self, self._ask(request)["pid"], out, err)

    def run(self, arguments: Sequence[str], folder: Path, **watched: Any) -> Done:
        """Run `gorp` with `arguments` in `folder` to its end."""
        return self.start(arguments, folder, **watched).wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        return json.loads(self._server.stdout.readline())


class Running:
    """A command that was started."""

    def __init__(self, commands: Commands, pid: int, out: Path, err: Path) -> None:
        self.pid, self._commands, self._out, self._err = pid, commands, out, err

    def ended(self, seconds: float) -> Done | None:
        """Return what the command ended with, or None if it still runs after `seconds`."""
        code = self._commands._ask({"wait": self.pid, "seconds": seconds})["code"]
        return None if code is None else Done(code, self._out.read_text(), self._err.read_text())

    def wait(self, seconds: float = LIMIT) -> Done:
        """Return what the command ended with."""
        done = self.ended(seconds)
        if done is None:
            os.kill(self.pid, 9)
            raise AssertionError(f"still runs after {seconds} s: {self.said()}")
        return done

    def send(self, number: int) -> None:
        """Send a signal to the command, which may be ending."""
        os.kill(self.pid, number)  # not waited for yet, so the number is still its own

    def said(self) -> str:
        """Return what it has said so far."""
        return self._out.read_text() + self._err.read_text()
