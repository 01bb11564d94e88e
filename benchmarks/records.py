"""Write the results of a measurement to a dated folder: a JSON file with the environment, and a picture."""

import argparse
import datetime
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch

from gorp.benchmark.cell import environment
from gorp.storage import write_json


RESULTS = Path(__file__).parent / "results"


def arguments(text: str | None, *, rows: int = 4, tokens: int = 128) -> argparse.ArgumentParser:
    """Return a parser with the options that all cost benchmarks share: model, device and sizes."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="t5-base", help="a key of shapes.SHAPES")
    parser.add_argument(
        "--layers", type=int, help="number of layers; the vocabulary is reduced in proportion; default: the whole model"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", help="float32 or bfloat16; default: float32 on the CPU, bfloat16 on the GPU")
    parser.add_argument("--rows", type=int, default=rows, help="rows of a batch")
    parser.add_argument("--tokens", type=int, default=tokens, help="tokens of a row")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: processor time, for a busy machine"
    )
    parser.add_argument("--out", type=Path, help="folder; default: benchmarks/results/cost-<today>")
    return parser


def settle(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments, set the defaults that depend on device and date, and set the number of threads."""
    args = parser.parse_args(argv)
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    args.out = args.out or RESULTS / f"cost-{datetime.date.today().isoformat()}"
    torch.set_num_threads(args.threads)
    return args


def described(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that determine the numbers, as JSON values."""
    return {key: value for key, value in vars(args).items() if key != "out"}


def conditions() -> dict[str, Any]:
    """Return machine, packages, commit, time, and load of the machine."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # git is not installed
        commit = ""
    return environment() | {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "commit": commit,
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write_record(folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    """Write `record` to `<folder>/<name>.json` and return the path."""
    path = folder / f"{name}.json"
    write_json(path, record)
    return path


def figure(columns: int) -> tuple[Any, Any]:
    """Return a figure with `columns` axes in a row, drawn without a display."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(1, columns, figsize=(4.2 * columns, 3.2), layout="constrained", squeeze=False)
    return drawing, axes[0]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
