"""What is minimized: the language model's loss and, where a teacher has read the text, the distance from the teacher.

The second term is, over the segments s of 16 tokens that the teacher has read, the mean of

    ‖W · mean of h / √d over the tokens of s - t_s‖²,

where h is the last hidden state (of the encoder, where there is one; d wide), t_s the teacher's vector (mean square
length 1 over the corpus) and W a matrix that is dropped after the training. An encoder sees the text with its spans
removed, the teacher saw it whole.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Objective(nn.Module):
    """A model with its loss."""

    def __init__(self, model: PreTrainedModel, teacher_width: int = 0, weight: float = 1.0) -> None:
        """Put the two together.

        Args:
            model: The model.
            teacher_width: Width of the teacher, 0 for none.
            weight: Weight of the distance from the teacher.
        """
        super().__init__()
        self.model, self.weight = model, weight
        width = model.config.hidden_size
        self.head: nn.Linear | None = None
        if teacher_width:
            self.head = nn.Linear(width, teacher_width, bias=False, device=model.device)
            nn.init.zeros_(self.head.weight)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        places: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute both losses of a batch.

        Args:
            input_ids: N x L.
            labels: As the model wants them.
            attention_mask: N x L, or none.
            places: Segment of each input token, N x L, -1 for none.
            targets: What the teacher says of the S segments, N x S x its width; NaN where it says nothing.

        Returns:
            The weighted sum, and the distance from the teacher by itself (0 without one).
        """
        output = self.model(
            input_ids=input_ids,
            labels=labels,
            attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=targets is not None and not self.model.config.is_encoder_decoder,
        )
        if self.head is None or targets is None or places is None:
            return output.loss, torch.zeros_like(output.loss)
        hidden = output.encoder_last_hidden_state if "encoder_last_hidden_state" in output else output.hidden_states[-1]
        number = torch.arange(targets.shape[1], device=targets.device)
        members = (places[:, None, :] == number[:, None]).to(hidden.dtype)
        means = members @ hidden / members.sum(2, keepdim=True).clamp(min=1.0) / hidden.shape[2] ** 0.5
        said = ~targets.isnan().any(dim=2) & members.any(dim=2)
        squares = (self.head(means).float() - targets.nan_to_num()).square().sum(2)
        distance = (squares * said).sum() / said.sum().clamp(min=1)
        return output.loss + self.weight * distance, distance.detach()
