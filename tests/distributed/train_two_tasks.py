"""Two tasks on as many ranks as torchrun starts; each rank writes what it holds. Run by `test_ranks.py`.

torchrun --nproc-per-node 2 train_two_tasks.py FOLDER METHOD FAMILY
"""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from gorp.core.distributed import num_ranks
from gorp.storage import write_tensors
from tests.runs import fresh, rows, tiny, train


GLOBAL_BATCH, STEPS = 8, 15


class Keep(TrainerCallback):
    """The method's state when training ends, frames included."""

    def __init__(self, method):
        self.method = method

    def on_train_end(self, args, state, control, **kwargs):
        self.state = {key: x.clone() for key, x in self.method.state_dict().items()}


def main(folder: Path, name: str, family: str) -> None:
    torch.set_num_threads(1)
    ranks = num_ranks_asked()
    model = tiny(family)
    options = {"gorp": {"full_modules": "all-linear"}, "olora": {"strength": 2.0}, "ewc": {"strength": 100.0}}
    method = fresh(name, model, **options.get(name, {}))
    for task in (1, 2):
        keep = Keep(method)
        train(
            model, method, task, folder / f"task{task}", callbacks=(keep,), data=rows(task, 40),
            per_device_train_batch_size=GLOBAL_BATCH // ranks, gradient_accumulation_steps=1, max_steps=STEPS,
            learning_rate=1e-3,
        )  # fmt: skip
    assert num_ranks() == ranks
    rank = dist.get_rank() if ranks > 1 else 0
    write_tensors(folder / f"model{rank}.safetensors", dict(model.named_parameters()), {})
    write_tensors(folder / f"live{rank}.safetensors", keep.state, {})
    write_tensors(folder / f"method{rank}.safetensors", method.state_dict(), {})
    if ranks > 1:
        dist.destroy_process_group()


def num_ranks_asked() -> int:
    """What torchrun says; the process group does not exist before the Trainer does."""
    import os

    return int(os.environ.get("WORLD_SIZE", "1"))


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
