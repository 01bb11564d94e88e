"""Batches as a function of the seed and of how many came before, so that a stopped run goes on exactly where it was."""

from dataclasses import dataclass

import numpy as np
import torch

from scripts.pretrain.corpus import PackedTokens
from scripts.pretrain.noise import SpanCorruption
from scripts.pretrain.pairs import PackedPairs
from scripts.pretrain.tokenizer import BOS_ID, EOS_ID, PAD_ID


IGNORED = -100
"""Label that no loss is computed for."""


@dataclass(frozen=True, kw_only=True)
class T5Batches:
    """Batches of the encoder-decoder."""

    corpus: PackedTokens
    """Windows of text, as long as `noise.window`."""
    pairs: PackedPairs | None
    """Prompts and completions with at most `prompt_length` - 1 and `answer_length` - 1 tokens, or none."""
    noise: SpanCorruption
    """The span corruption."""
    rows: int = 32
    """Windows per batch of text; a batch of instructions has twice as many rows."""
    prompt_length: int = 128
    """Encoder tokens of an instruction row."""
    answer_length: int = 16
    """Decoder tokens of an instruction row."""
    seed: int = 0
    """Seed of the spans."""

    def text(self, number: int) -> dict[str, torch.Tensor]:
        """Give text batch `number`: `input_ids` (rows, input_length), `labels` (rows, target_length)."""
        numbers = range(number * self.rows, (number + 1) * self.rows)
        windows = np.stack([self.corpus.window(row) for row in numbers])
        inputs, labels = self.noise(windows, np.random.default_rng([self.seed, 1, number]))
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}

    def instructions(self, number: int) -> dict[str, torch.Tensor]:
        """Give instruction batch `number`, padded to `prompt_length` and `answer_length`."""
        rows = 2 * self.rows
        inputs = np.full((rows, self.prompt_length), PAD_ID)
        labels = np.full((rows, self.answer_length), IGNORED)
        for row in range(rows):
            prompt, answer = self.pairs.pair(number * rows + row)
            for array, tokens in ((inputs, prompt), (labels, answer)):
                array[row, : len(tokens)], array[row, len(tokens)] = tokens, EOS_ID
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
        numbers = range(number * self.rows, (number + 1) * self.rows)
        ids = torch.from_numpy(np.stack([self.corpus.window(row) for row in numbers]))
        ids[:, 0] = BOS_ID
        return {"input_ids": ids, "labels": ids.clone()}

    def instructions(self, number: int) -> dict[str, torch.Tensor]:
        """Give instruction batch `number`: pairs one after another in a row, only the completions are learned."""
        length = self.corpus.length
        inputs = np.full((self.rows, length), PAD_ID)
        labels = np.full((self.rows, length), IGNORED)
        slots = max(1, length // 32)
        for row in range(self.rows):
            at = 0
            for slot in range(slots):
                prompt, answer = self.pairs.pair((number * self.rows + row) * slots + slot)
                begin = at + 1 + len(prompt)
                end = begin + len(answer) + 1
                if end > length:
                    break
                inputs[row, at], inputs[row, end - 1] = BOS_ID, EOS_ID
                inputs[row, at + 1 : begin], inputs[row, begin : end - 1] = prompt, answer
                labels[row, begin:end] = inputs[row, begin:end]
                at = end
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}


def tokens_of(batch: dict[str, torch.Tensor]) -> int:
    """Count the tokens of a batch, padding left out; those of the decoder count if it has rows of its own."""
    count = int((batch["input_ids"] != PAD_ID).sum())
    own = "labels" in batch and batch["labels"].shape != batch["input_ids"].shape
    return count + (int((batch["labels"] != IGNORED).sum()) if own else 0)
