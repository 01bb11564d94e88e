"""The weights of a workspace's base model, read one by one from its files; no model is built and nothing downloaded."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from gorp.models.files import weights_sha256
from gorp.models.load import on_this_machine
from gorp.progress import Progress
from gorp.storage import tensor_names
from gorp.workspace.evaluate import present_configuration
from gorp.workspace.store import Version, Workspace


class BaseFiles:
    """W₀ of each weight, by its name in the files.

    Args:
        store: The workspace.
        version: Any version of it.
        source: The YAML that the user named, if any.
    """

    def __init__(self, store: Workspace, version: Version, *, source: Path | None = None) -> None:
        self.problem: str | None = None
        """Why no weight can be read; None if they can."""
        folder = self._find(store, version, source)
        paths = [] if folder is None else sorted(folder.glob("*.safetensors"))
        self._files = {name: path for path in paths for name in tensor_names(path)}

    def _find(self, store: Workspace, version: Version, source: Path | None) -> Path | None:
        if version.is_protection:
            self.problem = "the base model of a protection folder is known only by its parameters, once it is loaded"
            return None
        # No code runs here, so it need not be allowed.
        model = present_configuration(store, Progress(), source, trust_remote_code=True).model
        folder = on_this_machine(model)
        if folder is None:
            self.problem = f"the base model {model.path} is neither a folder nor in the cache of the hub"
        elif weights_sha256(folder) != version.record["base"]["sha256"]:
            self.problem = f"the weights of {model.path} are not those that the version was trained from"
        return None if self.problem else folder

    def weight(self, name: str, shape: torch.Size) -> Tensor | None:
        """Return W₀ in float32; None if the files have no weight of that name and shape (a model may rename them)."""
        if name not in self._files:
            return None
        with safe_open(self._files[name], framework="pt") as file:
            found = file.get_tensor(name)
        return found.float() if found.shape == shape else None
