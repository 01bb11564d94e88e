"""Batches as a function of the seed and of how many came before, so that a stopped run goes on exactly where it was."""

from dataclasses import dataclass

import numpy as np
import torch

from scripts.pretrain.corpus import PackedTokens
from scripts.pretrain.noise import SpanCorruption
from scripts.pretrain.pairs import PackedPairs


BOS_ID, EOS_ID, PAD_ID, IGNORED = 2, 1, 0, -100


@dataclass(frozen=True, kw_only=True)
class T5Batches:
    """Batches of the encoder-decoder."""

    corpus: PackedTokens
    """Windows of text."""
    pairs: PackedPairs | None
    """Prompts and completions, or none."""
    noise: SpanCorruption
    """The span corruption; its window is that of `corpus`."""
    rows: int = 32
    """Windows per batch of text."""
    pair_rows: int = 64
    """Pairs per batch of instructions."""
    prompt_length: int = 128
    """Encoder tokens of an instruction batch; longer pairs are passed over."""
    answer_length: int = 16
    """Decoder tokens of an instruction batch."""
    seed: int = 0
    """Seed of the spans."""

    def text(self, number: int) -> dict[str, torch.Tensor]:
        """Give text batch `number`: `input_ids` (rows, input_length), `labels` (rows, target_length)."""
        draw = np.random.default_rng([self.seed, 1, number])
        windows = [self.corpus.window(number * self.rows + row) for row in range(self.rows)]
        inputs, targets = zip(*(self.noise(window, draw) for window in windows), strict=True)
        return {"input_ids": torch.from_numpy(np.stack(inputs)), "labels": torch.from_numpy(np.stack(targets))}

    def instructions(self, number: int) -> dict[str, torch.Tensor]:
        """Give instruction batch `number`, padded to `prompt_length` and `answer_length`."""
        inputs = np.full((self.pair_rows, self.prompt_length), PAD_ID)
        labels = np.full((self.pair_rows, self.answer_length), IGNORED)
        for row in range(self.pair_rows):
            prompt, answer = self.pairs.pair(number * self.pair_rows + row)
            inputs[row, : len(prompt) + 1] = [*prompt, EOS_ID]
            labels[row, : len(answer) + 1] = [*answer, EOS_ID]
        ids = torch.from_numpy(inputs)
        return {"input_ids": ids, "attention_mask": (ids != PAD_ID).long(), "labels": torch.from_numpy(labels)}


@dataclass(frozen=True, kw_only=True)
class LlamaBatches:
    """Batches of the decoder-only model; text and instructions have one shape."""

    corpus: PackedTokens
    """Windows of text; their length is the length of every row."""
    pairs: PackedPairs | None
    """Prompts and completions, or none."""
    rows: int = 16
    """Rows per batch."""

    def text(self, number: int) -> dict[str, torch.Tensor]:
        """Give text batch `number`, every row begun by `<s>`; all tokens are learned."""
        ids = torch.from_numpy(np.stack([self.corpus.window(number * self.rows + row) for row in range(self.rows)]))
        ids[:, 0] = BOS_ID
        return {"input_ids": ids, "labels": ids}

    def instructions(self, number: int) -> dict[str, torch.Tensor]:
        """Give instruction batch `number`: pairs one after another in a row, only the completions are learned."""
        length = self.corpus.length
        inputs, labels = np.full((2, self.rows, length), PAD_ID)
        labels[:] = IGNORED
        per_row = length // 32
        for row in range(self.rows):
            at = 0
            for slot in range(per_row):
                prompt, answer = self.pairs.pair((number * self.rows + row) * per_row + slot)
                begin, end = at + 1 + len(prompt), at + 2 + len(prompt) + len(answer)
                if end > length:
                    break
                inputs[row, at:end] = [BOS_ID, *prompt, *answer, EOS_ID]
                labels[row, begin:end] = inputs[row, begin:end]
                at = end
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
