"""The leak from outside: what the files of two successive versions say, with nothing of gorp imported.

    python scripts/leak_from_files.py WORKSPACE [--base MODEL]

For every version N with a parent P, and every weight that P protects, Frobenius norms, float64:

    trained    ‖(Δ_N - Δ_P) S_P‖ / ‖Δ_N - Δ_P‖
    earlier    the same against S_j of every version j before N: at the budget S gives directions up
    served     ‖(W_N - W_P) S_P‖ / ‖W_N - W_P‖  with W = round(W₀ + Δ) in the dtype of the model, given --base

Δ comes from versions/vN/delta.safetensors (dense `<name>`, or `<name>::left` `<name>::right`ᵀ), S from
versions/vN/memory.safetensors, W₀ from the *.safetensors of the base model's folder.
"""

import argparse
import json
from pathlib import Path
from statistics import median

import torch
from safetensors import safe_open
from torch import Tensor


def read(path: Path, name: str) -> Tensor | None:
    """One tensor of a file, None where either is missing."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name) if name in file.keys() else None


def names(path: Path) -> list[str]:
    """The weights whose inputs a memory file protects."""
    if not path.exists():
        return []
    with safe_open(path, framework="pt") as file:
        return sorted(name for name in file.keys() if "::" not in name)


def delta(folder: Path, name: str, dtype: torch.dtype = torch.float64) -> Tensor | float:
    """W - W₀ of one weight; 0 where the version has not touched it."""
    path = folder / "delta.safetensors"
    left, right = read(path, f"{name}::left"), read(path, f"{name}::right")
    if left is not None and right is not None:
        return left.to(dtype) @ right.to(dtype).mT
    dense = read(path, name)
    return 0.0 if dense is None else dense.to(dtype)


def base_weight(model: Path, name: str, dtype: str) -> Tensor | None:
    """W₀ as the model is loaded; `auto` is what the file holds."""
    found = [x for path in sorted(model.glob("*.safetensors")) if (x := read(path, name)) is not None]
    if not found:
        return None
    return found[0] if dtype == "auto" else found[0].to(getattr(torch, dtype))


def share(change: Tensor, basis: Tensor) -> float:
    """‖D S‖ / ‖D‖, 0 where nothing changed."""
    size = change.double().norm()
    return ((change.double() @ basis.double()).norm() / size).item() if size > 0 else 0.0


def summary(leaks: list[float]) -> dict[str, float]:
    """How many weights, their worst and their median leak."""
    return {"weights": len(leaks), "worst": max(leaks), "median": median(leaks)}


def main() -> None:
    """Print one JSON object: per version the leaks of the step from its parent to it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--base", type=Path, help="folder of the base model, for the weights that are served")
    arguments = parser.parse_args()
    folder = arguments.workspace / "versions"
    records = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("v*/version.json")}
    found = {}
    for version in sorted(records, key=lambda name: int(name[1:])):
        earlier, ancestor = [], records[version]["parent"]
        while ancestor is not None:
            earlier.insert(0, ancestor)
            ancestor = records[ancestor]["parent"]
        if not earlier or not names(folder / earlier[-1] / "memory.safetensors"):
            continue
        parent = folder / earlier[-1]
        against: dict[str, list[float]] = {}
        served = []
        for name in names(parent / "memory.safetensors"):
            change = delta(folder / version, name) - delta(parent, name)
            if not torch.is_tensor(change):
                continue
            for other in earlier:
                basis = read(folder / other / "memory.safetensors", name)
                if basis is not None:
                    against.setdefault(other, []).append(share(change, basis))
            dtype = records[version]["config"]["model"]["dtype"]
            start = base_weight(arguments.base, name, dtype) if arguments.base else None
            if start is not None:
                old, new = (
                    (start.float() + delta(at, name, torch.float32)).to(start.dtype)
                    for at in (parent, folder / version)
                )
                basis = read(parent / "memory.safetensors", name)
                served.append(share(new.double() - old.double(), basis))
        entry = {"trained": summary(against[parent.name])}
        entry["earlier"] = {f"{v} {records[v]['task']}": summary(leaks) for v, leaks in against.items()}
        if served:
            entry["served"] = summary(served)
        found[f"{parent.name} -> {version}"] = entry
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
