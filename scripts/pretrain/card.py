"""The model card of an exported model."""

from collections.abc import Mapping, Sequence
from typing import Any


SOURCES = (
    ("English Wikipedia, 2014, a part of the articles", "CC BY-SA 3.0 / GFDL", "ZhouYii/PatchedDistro@961716d8a5"),
    ("Classic books", "public domain", "mlschmitt/classic-books-markdown@944882722e"),
    ("English novels", "public domain", "computationalstylistics/100_english_novels@143e601875"),
    ("CIA World Factbook", "public domain", "factbook/factbook.json@8662a8b17a"),
    ("Wordset dictionary", "CC BY-SA 4.0 and WordNet licence", "wordset/wordset-dictionary@4503bfafbe"),
    ("Schema-guided dialogues", "CC BY-SA 4.0", "google-research-datasets/dstc8-schema-guided-dialogue@e852981ae3"),
    ("Python PEPs", "public domain", "python/peps@ba4deeb796"),
    ("Rust RFCs", "MIT or Apache-2.0", "rust-lang/rfcs@354518a8c9"),
    ("Ethereum EIPs", "CC0", "ethereum/EIPs@f767a1e807"),
)
"""Part of the corpus, its licence, and its source as repository@commit."""

HEAD = """---
language: en
library_name: transformers
pipeline_tag: {pipeline}
tags: [tiny, {architecture}]
---

# {name}

{what}
It was trained from random weights for tests and demos of continual fine-tuning: it learns a classification task in
seconds on a CPU. It knows little of the world, writes no useful text, and is no base for anything that people rely on.

```python
from transformers import {loader}, AutoTokenizer

model = {loader}.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

| | |
|---|---|
| weights | {weights:,}, bfloat16 |
| vocabulary | {vocabulary} tokens, byte-level BPE: no unknown token |
| tokens seen | {tokens:,}, padding left out, in {step:,} steps of {rows} rows |
| machine | {machine}, torch {torch} |
| optimizer | Muon ({rate}) for matrices, AdamW for embeddings and norms; warm-up, stable, decay |
| seed | {seed} |

## Data

{size} tokens of English, in documents; windows are drawn without regard to their borders.

| part | licence | source |
|---|---|---|
{sources}

Up to a third of the batches are instruction pairs made from the same text: name the kind of text, fill a gap, choose
the title, the topic word, the defined word, tell whether a sentence follows or a claim is stated. No benchmark task is
among them. Articles equal to a test item of DBpedia or BoolQ were dropped before; no further decontamination was done,
so claim nothing about zero-shot results.

## Held-out loss

{measure}

| step | tokens | loss (nats) | perplexity |
|---|---|---|---|
{curve}
"""

T5 = {
    "what": "A T5 v1.1 model, 5 encoder and 3 decoder layers of width 256, trained by span corruption of 20 %.",
    "loader": "AutoModelForSeq2SeqLM",
    "pipeline": "text2text-generation",
    "measure": "Of the removed tokens and sentinels of held-out text.",
}
LLAMA = {
    "what": "A Llama decoder with 8 layers of width 256, trained on rows of 512 tokens.",
    "loader": "AutoModelForCausalLM",
    "pipeline": "text-generation",
    "measure": "Of the next token of held-out text.",
}


def model_card(
    name: str,
    told: Mapping[str, Any],
    curve: Sequence[Mapping[str, float]],
    weights: int,
    counts: Mapping[str, int],
) -> str:
    """Write the card.

    Args:
        name: Name of the model.
        told: What `run.json` says.
        curve: Held-out losses, the newest last; about a dozen of them are shown.
        weights: Number of weights.
        counts: Tokens per part, as `counts.json` says.

    Returns:
        Markdown with a YAML head.
    """
    every = max(1, -(-len(curve) // 12))
    shown = [*curve[:-1][::every], curve[-1]]
    rows = [f"| {at['step']:,} | {at['tokens']:,} | {at['loss']:.3f} | {at['perplexity']:.1f} |" for at in shown]
    size = sum(count for part, count in counts.items() if part.startswith("train"))
    return HEAD.format(
        name=name,
        **(T5 if told["architecture"] == "t5" else LLAMA),
        **{key: told[key] for key in ("architecture", "machine", "torch", "rate", "rows", "seed", "vocabulary")},
        weights=weights,
        tokens=curve[-1]["tokens"],
        step=curve[-1]["step"],
        size=f"{size:,}",
        sources="\n".join(f"| {part} | {licence} | `{source}` |" for part, licence, source in SOURCES),
        curve="\n".join(rows),
    )
