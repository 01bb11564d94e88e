"""Every method by the name the command line knows it by. Adding a method adds one line here."""

from gorp.method import Method
from gorp.methods.ewc import Ewc
from gorp.methods.gorp import Gorp
from gorp.methods.incremental_lora import IncrementalLora
from gorp.methods.multi_task import MultiTask
from gorp.methods.olora import OLora
from gorp.methods.protected_full import ProtectedFull
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
    "multi_task": MultiTask,
}
