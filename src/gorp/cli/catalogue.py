"""What can be said of each method without importing it: `gorp methods` lists this, at once and without torch.

Held equal to the classes by tests/methods/test_contract.py.
"""

from typing import NamedTuple


class About(NamedTuple):
    """What the attributes of these names of a method's class are."""

    title: str
    keeps: str
    paper: str
    joint: bool = False
    needs_num_tasks: bool = False
    needs_task_id: bool = False
    stores_data: bool = False
    mergeable: bool = True

    def asks(self) -> list[str]:
        """The flags that are not as in most methods, in words."""
        words = {
            "needs the rows of all tasks at once": self.joint,
            "stores rows of earlier tasks": self.stores_data,
            "must know how many tasks there will be": self.needs_num_tasks,
            "must be told the task of a question": self.needs_task_id,
            "is no plain model": not self.mergeable,
        }
        return [word for word, is_so in words.items() if is_so]


CATALOGUE: dict[str, About] = {
    "gorp": About(
        title="LoRA and full matrices in the complement of a shared gradient space",
        keeps="a basis S per weight, at most budget·n x n floats; per weight and task 16·(m + n) bytes of readings",
        paper="Wang et al. 2025, arXiv:2507.02503",
    ),
    "protected_full": About(
        title="full fine-tuning outside the directions of earlier tasks' inputs",
        keeps="a basis S per weight, at most budget·n x n floats; per weight and task 16·(m + n) bytes of readings",
        paper="Wang et al. 2021, arXiv:2103.07113",
    ),
    "sequential_full": About(
        title="full fine-tuning, task after task",
        keeps="nothing",
        paper="the usual practice",
    ),
    "sequential_lora": About(
        title="one LoRA adapter, trained on task after task",
        keeps="nothing",
        paper="Hu et al. 2021, arXiv:2106.09685",
    ),
    "incremental_lora": About(
        title="a fresh LoRA pair per task, folded at its end",
        keeps="nothing",
        paper="Wang et al. 2023, arXiv:2310.14152 (IncLoRA)",
    ),
    "ewc": About(
        title="one LoRA adapter, held by an online Fisher penalty",
        keeps="F and θ*, twice the adapter: constant",
        paper="Kirkpatrick et al. 2017, arXiv:1612.00796",
    ),
    "olora": About(
        title="a fresh LoRA pair per task, pushed orthogonal to the earlier ones",
        keeps="the A rows of every task: r x n a weight and task",
        paper="Wang et al. 2023, arXiv:2310.14152",
    ),
    "nlora": About(
        title="a fresh LoRA pair per task, its product pushed to be sparse",
        keeps="nothing",
        paper="Yang et al. 2024, arXiv:2410.10179",
    ),
    "lwf": About(
        title="a fresh LoRA pair per task, held to what the model before it says of the same rows",
        keeps="nothing",
        paper="Li and Hoiem 2016, arXiv:1606.09282",
    ),
    "migu": About(
        title="a fresh LoRA pair per task, trained where a layer's outputs are large",
        keeps="nothing",
        paper="Du et al. 2024, arXiv:2406.17245",
    ),
    "replay": About(
        title="one LoRA adapter, trained on rows of earlier tasks beside the new ones",
        keeps="rows of earlier tasks as token ids, memory_rows in all: constant",
        paper="Chaudhry et al. 2019, arXiv:1902.10486",
        stores_data=True,
    ),
    "multi_task": About(
        title="joint LoRA: one adapter trained on all tasks together",
        keeps="needs the data of every task",
        paper="Caruana 1997, Machine Learning 28",
        joint=True,
    ),
}
"""Name of the method -> what it does, what it keeps between tasks, where it comes from."""
