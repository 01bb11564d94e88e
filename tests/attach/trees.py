"""What is in a folder and in a model, to be compared before and after something that must not change them."""

import hashlib
from pathlib import Path

from torch import Tensor, nn


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its path; the lock's file is left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "gorp.lock"
    }


def whole(model: nn.Module) -> dict[str, tuple[Tensor, bool, type]]:
    """Every parameter of a model, whether it is trained, and the type of its layer."""
    return {
        f"{name}.{key}" if name else key: (p.detach().clone(), p.requires_grad, type(layer))
        for name, layer in model.named_modules()
        for key, p in layer.named_parameters(recurse=False)
    }


def assert_same(model: nn.Module, before: dict[str, tuple[Tensor, bool, type]]) -> None:
    """The model is bit for bit the one that `whole` saw, plain or wrapped as it was."""
    now = whole(model)
    assert now.keys() == before.keys()
    for name, (tensor, trained, layer) in before.items():
        assert (now[name][0] == tensor).all() and now[name][1:] == (trained, layer), name
