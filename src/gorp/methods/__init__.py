"""Every method by the name the command line knows it by. Adding a method adds one line here."""

from gorp.layers.lora import LoraSettings
from gorp.methods.base import Method, MethodConfig
from gorp.methods.ewc import Ewc
from gorp.methods.gorp import Gorp
from gorp.methods.incremental_lora import IncrementalLora
from gorp.methods.lwf import Lwf
from gorp.methods.migu import Migu
from gorp.methods.multi_task import MultiTask
from gorp.methods.nlora import NLora
from gorp.methods.olora import OLora
from gorp.methods.protected_full import ProtectedFull
from gorp.methods.replay import Replay
from gorp.methods.sequential_full import SequentialFull
from gorp.methods.sequential_lora import SequentialLora


METHODS: dict[str, type[Method]] = {
    "gorp": Gorp,
    "protected_full": ProtectedFull,
    "sequential_full": SequentialFull,
    "sequential_lora": SequentialLora,
    "incremental_lora": IncrementalLora,
    "ewc": Ewc,
    "olora": OLora,
    "nlora": NLora,
    "lwf": Lwf,
    "migu": Migu,
    "replay": Replay,
    "multi_task": MultiTask,
}


def build_method(name: str, config: MethodConfig | None = None, lora: LoraSettings | None = None) -> Method:
    """A new method, before its `setup`.

    Args:
        name: A key of `METHODS`.
        config: Of that method's `Config`; its defaults when None.
        lora: The adapters; defaults when None. Methods without adapters ignore it.

    Example:
        >>> from gorp import GorpConfig, LoraSettings, build_method
        >>> method = build_method("gorp", GorpConfig(budget=0.5), LoraSettings(r=16))
        >>> method.name, method.config.mode
        ('gorp', 'strict')
    """
    method = METHODS[name]
    return method(config, lora) if method.uses_lora else method(config)  # pyright: ignore[reportCallIssue]
