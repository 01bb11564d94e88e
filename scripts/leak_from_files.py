"""The invariant from outside: what two successive versions' files say, with nothing of gorp imported.

    python scripts/leak_from_files.py WORKSPACE

For every weight that version N protects:  ‖(W_{N+1} - W_N) S_N‖ / ‖W_{N+1} - W_N‖,  Frobenius norms, float64. W_N - W₀
comes from versions/vN/delta.safetensors (dense `<name>`, or `<name>::left` `<name>::right`ᵀ), S_N from
versions/vN/memory.safetensors.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file


def delta(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """W_N - W₀ of one weight."""
    if name in tensors:
        return tensors[name].double()
    return tensors[f"{name}::left"].double() @ tensors[f"{name}::right"].double().mT


def main() -> None:
    """Print one JSON object: per pair of versions the number of protected weights, the largest and the median leak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    folder = parser.parse_args().workspace / "versions"
    names = sorted((p.name for p in folder.glob("v*")), key=lambda name: int(name[1:]))
    found = {}
    for old, new in pairwise(names):
        if not (folder / old / "memory.safetensors").exists():
            continue
        before, after = (load_file(folder / name / "delta.safetensors") for name in (old, new))
        memory = {
            name: basis for name, basis in load_file(folder / old / "memory.safetensors").items() if "::" not in name
        }
        leaks = []
        for name, basis in memory.items():
            change = delta(after, name) - delta(before, name)
            leaks.append(((change @ basis.double()).norm() / change.norm()).item())
        if leaks:
            middle = torch.tensor(leaks).median().item()
            found[f"{old} -> {new}"] = {"weights": len(leaks), "largest": max(leaks), "median": middle}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
