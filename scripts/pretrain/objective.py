"""What is minimized: the language model's loss, and the distance from the teacher on what both read.

For the words w of the passages r of a batch, with the teacher's states t_w (mean over the tokens of a word) and t_r
(over the whole passage), and the model's h_w and the mean h_r of its h_w,

    distance = mean_w ‖(h_w - t_w) / s‖² / d  +  mean_r ‖(h_r - t_r) M‖²,

s is the standard deviation of the t_w, M a partial whitening of the t_r: with their covariance Q Λ Qᵀ, M = Q (Λ +
0.02 λ₁ I)^(-1/2), scaled so that mean ‖(t_r - mean) M‖² = 1. Without it the distance would be about topics alone,
which make up the large directions. h is the encoder's output and a learned constant, for the Llama the stream before
its last layer, normalized with a learned weight, and a learned constant.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scripts.pretrain.teacher import means


FLOOR = 0.2
"""Least standard deviation of a coordinate, in the median of all."""

PLAIN = 0.02
"""What is added to the variances before whitening, in the largest."""


class Objective(nn.Module):
    """A model with its loss."""

    def __init__(self, model: PreTrainedModel, width: int) -> None:
        """Put the two together.

        Args:
            model: The model.
            width: Width d of the teacher.
        """
        super().__init__()
        self.model, self.width, self.seq2seq = model, width, model.config.is_encoder_decoder
        self.shift = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(model.config.hidden_size), requires_grad=not self.seq2seq)
        self.register_buffer("deviation", torch.ones(width), persistent=False)
        self.register_buffer("whitening", torch.eye(width), persistent=False)

    def measure(self, batches: list[dict[str, Tensor]]) -> None:
        """Take s and M from what the teacher says of some batches, wherever those lie."""
        words = torch.cat([batch["words"][batch["known"]] for batch in batches])
        texts = torch.cat([batch["texts"] for batch in batches])
        deviation = words.std(0)
        self.deviation = deviation.clamp(min=FLOOR * deviation.median().item()).to(self.shift.device)
        centred = texts - texts.mean(0)
        variances, directions = torch.linalg.eigh(centred.mT @ centred / len(centred))
        whitening = directions * (variances.clamp(min=0) + PLAIN * variances[-1]).rsqrt()
        whitening = whitening / (centred @ whitening).square().sum(1).mean().sqrt()
        self.whitening = whitening.to(self.shift.device)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the model on a batch.

        Args:
            input_ids: N x L.
            attention_mask: N x L, or none.
            labels: As the model wants them; without, only a T5's encoder runs.

        Returns:
            The language model's loss (0 without labels) and h, N x L x d.
        """
        if self.seq2seq:
            if labels is None:
                output = self.model.encoder(input_ids=input_ids, attention_mask=attention_mask)
                return input_ids.new_zeros((), dtype=torch.float32), self._shifted(output.last_hidden_state.float())
            output = self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False)
            return output.loss, self._shifted(output.encoder_last_hidden_state.float())
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            use_cache=False,
            output_hidden_states=True,
        )
        stream = output.hidden_states[-2].float()
        normal = stream * torch.rsqrt(stream.square().mean(-1, keepdim=True) + self.model.config.rms_norm_eps)
        return output.loss, self._shifted(self.scale * normal)

    def distance(self, hidden: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute both parts of the distance.

        Args:
            hidden: h, N x L x d.
            batch: What `Reading.batch` gives.

        Returns:
            That of the words and that of the passages.
        """
        states, here = means(hidden, batch["owner"], len(batch["words"]))
        both = here & batch["known"]
        words = ((states - batch["words"]) / self.deviation)[both].square().mean()
        rows = batch["row"][both]
        sums = hidden.new_zeros(len(hidden), self.width).index_add_(0, rows, states[both])
        whole = sums / torch.bincount(rows, minlength=len(hidden))[:, None].clamp(min=1)
        texts = ((whole - batch["texts"]) @ self.whitening).square().sum(1).mean()
        return words, texts

    def _shifted(self, hidden: Tensor) -> Tensor:
        return hidden[..., : self.width] + self.shift
