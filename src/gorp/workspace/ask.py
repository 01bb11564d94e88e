"""Ask a version: render a question as its task was trained, and answer it as its rows are scored.

    answer = Answerer.load(Path("bot"))("Is the museum open today?")

The weights are merged once, when the object is made; it can be called any number of times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gorp.data import Encoding, Form, TaskSpec, encode_prompts
from gorp.data.form import from_list
from gorp.data.layout import Layout, find_layout
from gorp.errors import CheckpointError, ConfigError, DataError, nearest
from gorp.evaluation import EvalConfig
from gorp.evaluation.batches import answer_limit, is_encoder_decoder
from gorp.evaluation.generate import generate_answers
from gorp.evaluation.rank import rank_labels
from gorp.methods import METHODS
from gorp.models.load import load_tokenizer
from gorp.models.positions import positions_of
from gorp.progress import Progress
from gorp.storage import read_json
from gorp.weights.base import BaseWeights
from gorp.workspace.blocks import read_block
from gorp.workspace.held import held_in_use
from gorp.workspace.learned import is_kept, kept_path
from gorp.workspace.loaded import base_model, deltas_of
from gorp.workspace.store import Version, Workspace


UNLIMITED = 10**9
"""Tokens that no prompt has: `rows.MAX_CHARACTERS` is smaller."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a version answered."""

    text: str
    """The answer, as `gorp eval` records it: the new text, stripped; or the most likely label."""
    prompt: str
    """The rendered prompt."""
    prompt_tokens: int
    """Tokens of the prompt."""
    max_prompt_tokens: int
    """Tokens of a prompt that the model reads; a longer one was cut, as in training."""

    @property
    def is_cut(self) -> bool:
        """Whether the model did not read the whole prompt."""
        return self.prompt_tokens > self.max_prompt_tokens


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """A version in memory, which answers questions in the form of one of its tasks."""

    version: str
    task: str
    layout: Layout
    metric: str
    """`label_ranking`: the answer is the most likely label. `exact_match`: it is generated."""
    encoding: Encoding
    """Limits of prompts, with which the version was scored."""
    evaluation: EvalConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(
        cls,
        workspace: Path,
        *,
        version: str | None = None,
        task: str | None = None,
        base: Path | None = None,
        source: Path | None = None,
        trust_remote_code: bool = False,
        progress: Progress | None = None,
    ) -> "Answerer":
        """Load a version and merge what it has learned into the base model.

        Args:
            workspace: Folder of the workspace.
            version: Name of the version; None for the current one.
            task: The task whose form is used; None for the newest that the version has learned.
            base: Folder of the base model, if it was moved.
            source: The YAML that the user named, if any.
            trust_remote_code: Whether Python code that comes with the model may run.
            progress: Receives the progress.

        Raises:
            ConfigError: If there is no such version or task, or the form of the task is not known.
            CheckpointError: If the version, its base model or the kept rows of the task are damaged.
        """
        store, progress = Workspace(workspace), progress or Progress()
        chosen = store.current() if version is None else store.version(version)
        _check_askable(chosen)
        for line in held_in_use(store, chosen):
            progress.say(line)
        name, record = _task(store, chosen, task)
        rows, labels, origin = _kept(store, record, name)
        found = base_model(chosen, base, source=source, trust_remote_code=trust_remote_code, progress=progress)
        settings = chosen.record["config"]  # as they were when its answers were recorded
        encoding = read_block(Encoding, settings.get("encoding", {}), "encoding")
        evaluation = read_block(EvalConfig, settings.get("eval", {}), "eval")
        spec = next(entry for entry in record["config"]["tasks"] if entry["name"] == name)
        layout = find_layout(
            read_block(TaskSpec, spec, "tasks"),
            rows,
            labels=labels,
            source=origin,
            tokenizer=load_tokenizer(found.config),
            date=encoding.date,
        )
        progress.say(f"loading {found.name}")
        model, tokenizer = found.load()
        BaseWeights(model).load(deltas_of(chosen))  # the copies of W₀ are dropped with the object
        return cls(
            version=chosen.name,
            task=name,
            layout=layout,
            metric=record["tasks"][name]["metric"],
            encoding=encoding,
            evaluation=evaluation,
            model=model,
            tokenizer=tokenizer,
        )

    def __call__(
        self,
        question: "str | Mapping[str, Any] | Sequence[Mapping[str, Any]]",
        *,
        max_new_tokens: int | None = None,
    ) -> Answer:
        """Answer a question.

        Args:
            question: Text; a row as in the task's file, whose answer is not used; or, if the task was trained on chats,
                the turns so far, each with `role` and `content`.
            max_new_tokens: Most tokens of an answer; None for the number with which the version was scored.

        Raises:
            DataError: If the question cannot be rendered, or is longer than the model can read.
            ConfigError: If `max_new_tokens` is out of range, or the task's answers are labels.
        """
        config = self.evaluation
        if max_new_tokens is not None:
            if self.metric == "label_ranking":
                raise ConfigError(
                    f"{self.task}: its answer is the most likely of its labels, not generated text. Leave out "
                    "--max-new-tokens."
                )
            config = replace(config, max_new_tokens=max_new_tokens)
        prompt, form = self.layout.render(question, tokenizer=self.tokenizer, date=self.encoding.date)
        count = self._count(prompt, form)
        asked: Any = {"encoding": self.encoding, "config": config, "forms": [form]}
        if self.metric == "label_ranking":
            [scores] = rank_labels(self.model, self.tokenizer, [prompt], list(self.layout.labels or ()), **asked)
            text = max(scores, key=scores.__getitem__)  # of equal scores the first label, as in `score_task`
        else:
            self._check_positions(count, answer_limit(self.encoding, config))
            [text] = generate_answers(self.model, self.tokenizer, [prompt], **asked)
        return Answer(text=text, prompt=prompt, prompt_tokens=count, max_prompt_tokens=self.encoding.max_prompt_tokens)

    def _count(self, prompt: str, form: Form) -> int:
        """Return the tokens of a prompt that is not cut."""
        whole = replace(self.encoding, max_prompt_tokens=UNLIMITED)
        pair: Any = {"encoder_decoder": is_encoder_decoder(self.model), "encoding": whole}
        return len(encode_prompts([prompt], self.tokenizer, forms=[form], **pair)[0])

    def _check_positions(self, count: int, answer: int) -> None:
        limits, together = positions_of(self.model), not is_encoder_decoder(self.model)
        prompt = min(count, self.encoding.max_prompt_tokens)
        if limits.prompt is not None and prompt + answer * together > limits.prompt:
            raise DataError(
                f"the prompt has {prompt} tokens and its answer may have {answer}, but the model has only "
                f"{limits.prompt} positions. Shorten the prompt, or lower --max-new-tokens."
            )
        if limits.answer is not None and answer > limits.answer:
            raise DataError(
                f"the answer may have {answer} tokens, but the model's decoder has only {limits.answer} positions. "
                "Lower --max-new-tokens."
            )


def _check_askable(version: Version) -> None:
    """Raise if gorp cannot render a prompt for this version, or cannot merge it into one model."""
    root = version.folder.parent.parent
    if version.is_protection:
        raise ConfigError(
            f"{root}: a protection folder. Its tasks were trained in a loop that is not gorp's, so it is not known how "
            "their prompts were made. `gorp export` writes a model that transformers can ask."
        )
    method = METHODS.get(str(version.record["config"]["method"]["name"]))
    if method is None or not method.mergeable:
        name = version.record["config"]["method"]["name"]
        raise ConfigError(
            f"{root}: the result of the method `{name}` cannot be merged into one model. `gorp eval` scores it with "
            "the method's own inference."
        )


def _task(store: Workspace, version: Version, name: str | None) -> tuple[str, Mapping[str, Any]]:
    """Return the task whose form is used, and the record of a version that describes it."""
    records = [version.record, *(other.record for other in reversed(store.versions()))]
    learned = list(dict.fromkeys(task for record in records for task in record["contains"]))
    if not learned:
        raise ConfigError(f"{store.root}: no task is learned yet, so there is no form to ask in. `gorp train` first.")
    if name is None:  # v0 has learned none: that of the newest version
        name = str(next(record["contains"][-1] for record in records if record["contains"]))
    if name not in learned:
        raise ConfigError(f"no learned task `{name}`; there are {', '.join(learned)}.{nearest(name, learned)}")
    return name, next(record for record in records if name in record["tasks"])


def _kept(store: Workspace, record: Mapping[str, Any], name: str) -> tuple[Any, tuple[str, ...] | None, str]:
    """Return the kept eval rows of a task, its labels, and where its rows came from."""
    path = kept_path(store, name)
    kept = read_json(path) if path.is_file() else None
    if kept is None:
        raise ConfigError(
            f"{store.root}: no rows of {name} are kept (no {path}), so it is not known how its prompts were made. "
            "`gorp train` keeps them again from the rows in the YAML; --task names another task."
        )
    if not is_kept(kept, name):
        raise CheckpointError(f"{path}: damaged or changed. Restore it from a copy, or name another task with --task.")
    labels = record["tasks"][name]["labels"]
    return from_list(kept["rows"]), None if labels is None else tuple(labels), kept["source"]
