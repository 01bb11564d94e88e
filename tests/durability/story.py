"""The script that is interrupted: four months of one model, with a version that the gate holds and one that is left.

    init, add, add, train     v0, v1 (one), and v2 (two), which the gate holds
    gate, promote             v2 becomes the current version all the same
    rollback, add, train      v1 is current again; v3 (three)
    rollback, train, gc       v1 again, v4 (three) takes the place of v3, and v3 is removed

Each command may be repeated after it was interrupted. What a command says that had finished already is listed with it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.durability.commands import Commands, Done
from tests.models_small import tiny_llama
from tests.tokenizers_small import llama_tokenizer


WORDS = {"one": ("green", "red", "blue"), "two": ("World", "Sports", "Business"), "three": ("early", "late", "never")}
"""Of each task: the word that decides the answer."""
ANSWERS = ("true", "false", "good")

SETTINGS = """\
training:
  learning_rate: 5e-3
  num_train_epochs: 2
  per_device_train_batch_size: 4
  save_steps: 3
encoding:
  max_prompt_tokens: 64
  max_completion_tokens: 8
eval:
  max_new_tokens: 4
gate:
  inconclusive: hold
  margin: 2
  guard: general.txt
  guard_margin: 100
"""
"""What is edited into the YAML of `gorp init`; nine test rows cannot show that a loss is below two points.

The guard text decides too, and its margin is so large that it holds nothing.
"""


@dataclass(frozen=True)
class Step:
    """A command of the script."""

    arguments: tuple[str, ...]
    code: int = 0
    """Exit code if nothing interrupts it."""
    again: tuple[int, str] | None = None
    """Exit code and message (a regular expression) if it had finished already; None: as the first time."""
    edit: tuple[str, str] | None = None
    """An edit of the YAML before it: a regular expression, and what takes its place."""

    @property
    def verb(self) -> str:
        return self.arguments[0]


SCRIPT = (
    Step(("init", "./model", "--out", "bot.yaml"), again=(2, r"bot\.yaml: exists, and is not overwritten")),
    Step(
        ("add", "one", "one.jsonl", "--eval", "one_eval.jsonl"),
        again=(2, r"there is a task `one`"),
        edit=(r"(?ms)^training:.*?(?=^tasks:)", SETTINGS),
    ),
    Step(("add", "two", "two.jsonl", "--eval", "two_eval.jsonl"), again=(2, r"there is a task `two`")),
    Step(("train", "bot.yaml"), code=4, again=(0, r"two: held, because v2 may have lost on one")),
    Step(("gate", "bot.yaml", "--version", "v2", "--against", "v1"), code=4),
    Step(
        ("promote", "bot.yaml", "--version", "v2", "--anyway", "one is no longer asked"),
        again=(2, r"v2 is the current version already"),
    ),
    Step(("rollback", "bot.yaml", "v1"), again=(2, r"v1 is the current version; it was trained from v0")),
    Step(("add", "three", "three.jsonl", "--eval", "three_eval.jsonl"), again=(2, r"there is a task `three`")),
    Step(("train", "bot.yaml"), edit=(r"margin: 2\b", "margin: 90")),
    Step(("rollback", "bot.yaml", "v1"), again=(2, r"v1 is the current version; it was trained from v0")),
    Step(("train", "bot.yaml")),
    Step(("gc", "bot.yaml")),
)


def make_project(folder: Path) -> None:
    """Write the model, the guard text and the rows of three tasks into `folder`."""
    tokenizer = llama_tokenizer()
    tiny_llama(tokenizer, initializer_range=0.2).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    texts = (f"The early market number {number} opened late, and the world of sports is good." for number in range(20))
    (folder / "general.txt").write_text("\n\n".join(texts) + "\n")
    for name, words in WORDS.items():
        for part, count, first in (("", 24, 0), ("_eval", 9, 100)):
            rows = [
                {"prompt": f"The light {first + i} is {words[i % 3]}. Answer:", "completion": ANSWERS[i % 3]}
                for i in range(count)
            ]
            (folder / f"{name}{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit(step: Step, folder: Path) -> None:
    """Make the edit of a step, if it is not made yet."""
    if step.edit is not None:
        path, (pattern, new) = folder / "bot.yaml", step.edit
        text = path.read_text()
        if new not in text:
            text, count = re.subn(pattern, new.replace("\\", r"\\"), text, count=1)
            assert count == 1, text
            path.write_text(text)


def play(commands: Commands, folder: Path, steps: Sequence[Step]) -> None:
    """Run steps that nothing interrupts."""
    for step in steps:
        edit(step, folder)
        check(step, commands.run(step.arguments, folder), repeated=False)


def check(step: Step, done: Done, *, repeated: bool) -> None:
    """Check that a step ended as it must.

    Args:
        step: The step.
        done: What it ended with.
        repeated: Whether it was interrupted before, so that it may say that it had finished.
    """
    assert done.is_clean, f"{step.arguments}: {done.err}"
    if done.code == step.code:
        return
    code, message = step.again or (step.code, "")
    finished = repeated and done.code == code and re.search(message, done.out + done.err)
    assert finished, f"{step.arguments}: exit code {done.code}: {done.out}{done.err}"
