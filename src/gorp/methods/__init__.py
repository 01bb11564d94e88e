"""All methods by their names on the command line. A new method needs one line here."""

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
    """Return a new method object; its `setup` has not been called.

    Args:
        name: A key of `METHODS`.
        config: An instance of the method's `Config`; None for the defaults.
        lora: Settings of the LoRA pairs; None for the defaults. Methods without LoRA ignore it.

    Example:
        >>> from gorp import GorpConfig, LoraSettings, build_method
        >>> method = build_method("gorp", GorpConfig(budget=0.5), LoraSettings(r=16))
        >>> method.name, method.config.mode
        ('gorp', 'strict')
    """
    method = METHODS[name]
    return method(config, lora) if method.uses_lora else method(config)  # pyright: ignore[reportCallIssue]
