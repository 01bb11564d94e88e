"""Learning without Forgetting: distillation from the model before the task, on the new task's rows. Li & Hoiem 2016.

    L = L_task + λ τ² mean_k KL(p_old(· | x_k) ‖ p_new(· | x_k)),    p = softmax(z / τ)      arXiv:1606.09282, eq. 2, 3

over the K tokens that have a label. p_old is the model before the task: the current model with its LoRA pairs switched
off. The paper's cross entropy differs from KL by the entropy of p_old, which is constant during the task; τ² makes the
size of the gradient independent of τ (Hinton et al. 2015, arXiv:1503.02531). Each task trains a new LoRA pair. The
first task has no penalty, because nothing was learned before it.
"""

from dataclasses import dataclass
from typing import Annotated, final

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from gorp.core.outputs import Batch, Outputs
from gorp.methods.base import MethodConfig, TaskContext
from gorp.methods.lora import LoraMethod
from gorp.ranges import BETWEEN_TASKS, NOT_NEGATIVE, POSITIVE


@dataclass(frozen=True, kw_only=True)
class LwfConfig(MethodConfig):
    """Options of LwF."""

    strength: Annotated[float, NOT_NEGATIVE, BETWEEN_TASKS] = 1.0
    """λ: weight of the distillation term."""
    temperature: Annotated[float, POSITIVE, BETWEEN_TASKS] = 2.0
    """τ: temperature of both distributions; the larger it is, the more unlikely tokens count. (Paper: 2.)"""


@final
class Lwf(LoraMethod):
    """Adds a distillation loss towards the model before the task, on the task's own rows."""

    name = "lwf"
    title = "a new LoRA pair per task, with distillation from the model before the task on the same rows"
    paper = "Li and Hoiem 2016, arXiv:1606.09282"
    Config = LwfConfig
    _is_first_task = True

    @override
    def begin_task(self, model: nn.Module, task: TaskContext) -> None:
        super().begin_task(model, task)
        self._is_first_task = task.index == 1

    @override
    def extra_loss(self, model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor | None:
        if self._is_first_task:
            return None
        new, tau = outputs.answers.logits, self.config.temperature  # K x V
        with self.as_before():
            old = outputs.again()  # K x V
        log_new, log_old = (F.log_softmax(logits.float() / tau, dim=-1) for logits in (new, old))
        divergence = F.kl_div(log_new, log_old, reduction="none", log_target=True).sum(dim=-1)  # KL(old ‖ new), K
        return self.config.strength * tau**2 * outputs.mean(divergence)
