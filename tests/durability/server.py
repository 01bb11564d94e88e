"""Fork `gorp` commands from a process that has imported the heavy libraries already: only the import is saved.

Each command is a process of its own, in a session of its own, that runs `gorp.cli.app` with the arguments of a shell.
A line of stdin is a request, a line of stdout its answer, both as JSON:

    {"start": ["status", "bot.yaml"], "folder": ..., "out": ..., "err": ...}    -> {"pid": ...}
    {"wait": pid, "seconds": ...}    -> {"code": exit code, the signal that ended it as a negative number, or null}

`start` may also have `operations`: a file that lists the file operations, and `kill_before`: the number of the one
before which the process is killed (see `tests.durability.operations`).
"""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn


def main() -> None:
    """Import what the commands import, then answer requests until stdin ends."""
    import peft  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Trainer  # noqa: F401

    import gorp.cli.app
    import gorp.cli.console
    import gorp.cli.gate_tables
    import gorp.cli.live
    import gorp.cli.status_tables
    import gorp.export.lowrank
    import gorp.report
    import gorp.workspace.ask
    import gorp.workspace.diff
    import gorp.workspace.export
    import gorp.workspace.rollback
    import gorp.workspace.run  # noqa: F401

    torch.set_num_threads(1)
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"pid": start(request)} if "start" in request else {"code": wait(request["wait"], request["seconds"])}
        print(json.dumps(answer), flush=True)


def start(request: dict[str, Any]) -> int:
    """Fork a command and return its process id."""
    pid = os.fork()
    if pid == 0:
        run(request)
    return pid


def wait(pid: int, seconds: float) -> int | None:
    """Return the exit code of a command, or None if it still runs after `seconds`."""
    end, pause = time.monotonic() + seconds, 0.001
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(pause)
        pause = min(0.02, pause * 1.5)


def run(request: dict[str, Any]) -> NoReturn:
    """Become the command: what a shell gives to a process, then the command line, then its exit code."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(request["folder"])
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, request["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        descriptor = os.open(path, flags)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
    sys.argv = ["gorp", *request["start"]]
    if request.get("operations") or request.get("kill_before"):
        from tests.durability.operations import watch

        watch(Path(request["folder"]), log=request.get("operations"), kill_before=request.get("kill_before"))
    code = 1
    try:
        from gorp.cli import app

        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else (0 if end.code is None else 1)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
