"""What `protected_full` holds and computes beside a step of full fine-tuning, from the shapes of its weights.

For a weight of m x n with s protected directions, float32. S may be at the budget from the first task on.

    S and W_begin on the device      4·n·s + 4·m·n        W_begin where s > 0
    a step                           8·m·n·s flops        G and W, each times S and Sᵀ
    kept between tasks               4·s·(n + 1) + 4·m·n  S with its energies, the delta; each task's readings beside
"""

from torch import nn

from gorp.core.memory import room
from gorp.estimate.device import Device
from gorp.layers.names import weight_name
from gorp.methods.protected_full import ProtectedFull
from gorp.protection.coverage import reading_bytes


class ProtectedShapes:
    """The weights that `method` would train in `model`.

    Args:
        model: The base model, on any device.
        method: It knows `model`.
    """

    def __init__(self, model: nn.Module, method: ProtectedFull) -> None:
        layers = method.choose(model)
        self.shapes: dict[str, tuple[int, int]] = {
            name: (int(weight.shape[0]), int(weight.shape[1]))
            for name, weight in ((name, model.get_parameter(name)) for name in map(weight_name, layers))
        }
        """By name: m and n."""
        self._budget = method.config.budget

    def directions(self, tasks: int) -> dict[str, int]:
        """s of each weight in the task after `tasks` others, at most; at s = n it would be frozen and cost nothing."""
        return {name: min(room(n, self._budget), n - 1) if tasks else 0 for name, (_, n) in self.shapes.items()}

    def starts(self, tasks: int) -> int:
        """Bytes of W_begin on the device, in the task after `tasks` others."""
        return sum(4 * m * n for m, n in self.shapes.values()) if tasks else 0

    def step(self, tasks: int, device: Device) -> tuple[float, int]:
        """Seconds and flops of the projections in a step of that task."""
        seconds, flops, sizes = 0.0, 0, self.directions(tasks)
        for name, (m, n) in self.shapes.items():
            work, moved = 8 * m * n * sizes[name], 2 * 4 * (3 * m * n + 2 * n * sizes[name]) if tasks else 0
            flops, seconds = flops + work, seconds + (device.seconds(work, moved) if tasks else 0.0)
        return seconds, flops

    def kept(self, tasks: int) -> int:
        """Bytes of the method's `state_dict` after `tasks` tasks, at most."""
        each = (
            4 * room(n, self._budget) * (n + 1) + 4 * m * n + tasks * reading_bytes(m, n)
            for m, n in self.shapes.values()
        )
        return 8 + sum(each)
