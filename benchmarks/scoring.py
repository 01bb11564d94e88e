"""Measure the cost of scoring a task: gorp's greedy answers compared with a simple loop, and with training a row.

    python benchmarks/scoring.py --data DATA --model FOLDER [--tasks news utility] [--rows 100] [--batch 50]

DATA is as in forgetting.py. For each task and form of its prompts, the model first learns `--train` rows with LoRA, so
that its answers end as those of a trained model. Then the rows are answered in alternation by

    obvious    model.generate over the rows in their order, `--batch` at a time, padded on the left
    gorp       gorp.evaluation.generate_answers with the same batch size
    with NLL   the same, and the log-likelihoods of the right and of the given answers, as in `gorp train`

and the answers are compared. Forms: `question` is the text followed by a short question; `instruction` has the question
and the list of answers before the text, as in instruction data sets, so that all rows begin with the same tokens.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from forgetting import read
from peers import Timer, spread
from records import arguments, conditions, described, settle, write_record

from gorp.data import Encoding, Task, encode_prompts, pad_left
from gorp.evaluation import EvalConfig, generate_answers
from gorp.evaluation.generate import answer_prompts
from gorp.layers.lora import LoraSettings
from gorp.methods.sequential_lora import SequentialLora
from gorp.models.load import ModelConfig, load_model
from gorp.training import train_task


ENCODING = Encoding(max_prompt_tokens=128)
NEW_TOKENS = 12
FORMS = ("question", "instruction")


def in_form(task: Task, form: str) -> Task:
    """Return the task with its prompts in the given form."""
    if form == "question":
        return task

    def instruct(row: dict[str, str]) -> dict[str, str]:
        text, question = row["prompt"].rsplit("\n", 1)
        options = ", ".join(task.labels or ())
        return {"prompt": f"{question} Choose one from the option.\nOption: {options}\n{text}\nAnswer: "}

    assert task.train is not None and task.eval is not None
    return replace(task, train=task.train.map(instruct), eval=task.eval.map(instruct))


def obvious(model: Any, tokenizer: Any, prompts: list[str], batch: int) -> list[str]:
    """Return the answers of `model.generate`, with the rows in their order."""
    rows = encode_prompts(prompts, tokenizer, encoder_decoder=False, encoding=ENCODING)
    answers: list[str] = []
    for start in range(0, len(rows), batch):
        ids, mask = (part.to(model.device) for part in pad_left(rows[start : start + batch], tokenizer.pad_token_id))
        new = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
        answers += [text.strip() for text in tokenizer.batch_decode(new[:, ids.shape[1] :], skip_special_tokens=True)]
    return answers


def measure(task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Train briefly, then answer the rows in both ways, in alternation."""
    model, tokenizer = load_model(ModelConfig(path=args.model, dtype=args.dtype), args.device)
    method, timer = SequentialLora(lora=LoraSettings(target_modules="all-linear")), Timer(args.device, args.clock)
    method.setup(model)
    training = {"learning_rate": 3e-4, "num_train_epochs": 1, "per_device_train_batch_size": 8, "save_strategy": "no"}
    with tempfile.TemporaryDirectory() as folder:
        where: dict[str, Any] = {"name": task.name, "index": 1, "seed": 0, "training": training, "folder": Path(folder)}
        trained = timer.seconds(
            lambda: train_task(model, tokenizer, method, task.train, encoding=ENCODING, **where)  # pyright: ignore
        )
    assert task.eval is not None
    prompts, right = list(task.eval["prompt"]), list(task.eval["completion"])
    config = EvalConfig(batch_size=args.batch, max_new_tokens=NEW_TOKENS)
    answers: dict[str, list[str]] = {}
    with method.serving(model) as served:
        actions = {
            "obvious": lambda: answers.update(obvious=obvious(served, tokenizer, prompts, args.batch)),
            "gorp": lambda: answers.update(
                gorp=generate_answers(served, tokenizer, prompts, encoding=ENCODING, config=config)
            ),
            "with NLL": lambda: answer_prompts(served, tokenizer, prompts, right, encoding=ENCODING, config=config),
        }
        generate_answers(served, tokenizer, prompts[:2], encoding=ENCODING, config=config)  # warm-up
        seconds = timer.interleaved(actions, args.rounds)
    lengths = [len(ids) for ids in encode_prompts(prompts, tokenizer, encoder_decoder=False, encoding=ENCODING)]
    added = [more / plain for more, plain in zip(seconds["with NLL"], seconds["gorp"], strict=True)]
    ratios = [slow / fast for slow, fast in zip(seconds["obvious"], seconds["gorp"], strict=True)]
    return {
        "prompt_tokens": spread([float(length) for length in lengths]),
        "rows_per_second": {name: len(prompts) / min(times) for name, times in seconds.items()},
        "ratio": spread(ratios),
        "ratio_of_nll": spread(added),
        "right": sum(answer == each.strip() for answer, each in zip(answers["gorp"], right, strict=True)),
        "answers_that_differ": sum(a != b for a, b in zip(answers["obvious"], answers["gorp"], strict=True)),
        "trained_rows_per_second": len(task.train or ()) / trained,
        "seconds": seconds | {"training": [trained]},
    }


def main() -> None:
    """Parse the arguments, measure, and write the result."""
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True, help="a decoder-only model: a folder, or a hub id")
    parser.add_argument("--tasks", nargs="*", default=["news", "utility"])
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=FORMS)
    parser.add_argument("--train", type=int, default=64, help="rows to train on first")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.set_defaults(rows=100, clock="cpu")
    args = settle(parser)
    about = {key: value for key, value in described(args).items() if key not in ("shape", "layers", "tokens")}
    about |= {"data": "DATA", "model": Path(args.model).name}
    cases: dict[str, Any] = {}
    print(
        "| task | form | prompt, tokens | obvious, rows/s | gorp, rows/s | ratio (range) | with NLL (range) "
        "| trained rows/s | differ |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.tasks:
        for form in args.forms:
            task = in_form(read(name, args.data, train=args.train, scored=args.rows), form)
            of = cases[f"{name}, {form}"] = measure(task, args)
            rates, ratio, nll = of["rows_per_second"], of["ratio"], of["ratio_of_nll"]
            print(
                f"| {name} | {form} | {of['prompt_tokens']['median']:.0f} | {rates['obvious']:.2f} | "
                f"{rates['gorp']:.2f} | {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) | "
                f"{nll['median']:.2f} ({nll['min']:.2f} to {nll['max']:.2f}) | "
                f"{of['trained_rows_per_second']:.2f} | {of['answers_that_differ']} |",
                flush=True,
            )
            record = {"arguments": about, "environment": conditions(), "cases": cases}
            write_record(args.out, f"scoring-{about['model']}", record)  # after each case, because a run takes long


if __name__ == "__main__":
    main()
